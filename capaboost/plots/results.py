"""Every plot that result files hold enough for: against a setting, against parameters, and heat maps."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from capaboost.console import check_outputs
from capaboost.plots.panels import Undrawn, differences, dodge, grid, styles_of, task_panels
from capaboost.plots.style import INK, QUIET, SERIES, STYLE, image_files, write_figure
from capaboost.tables.compare import Cell, Comparison, by_seed
from capaboost.tables.groups import Group, Task, label_groups, natural_order
from capaboost.tables.notes import task_names
from capaboost.tables.statistics import Spread, spread_of
from capaboost.training.run_folder import worth

Lines = dict[str, dict[float, Spread]]  # the points of each line, by the label of the line
MOVES_WITH = {"adapter.density": ("adapter.n", "adapter.m")}  # what moves together with a setting


def lines(groups: list[Group], name: str, title: str) -> Figure:
    """Means over seeds with their deviation; the adapter's other settings, but for alpha, are equal along a line.

    Args:
        groups: All of the results.
        name: The setting on the x axis, such as `adapter.r`.
        title: What the axis is called.
    """
    rows = {task: of for task, of in _points(groups, name).items() if any(len(line) > 1 for line in of.values())}
    if not rows:
        raise Undrawn(f"no method has two values of {title} on a task, the adapter's other settings equal")
    styles = styles_of(label for of in rows.values() for label in of)
    figure, panels = task_panels(sorted(rows), styles)
    for task, panel in panels.items():
        meet = max(Counter(at for line in rows[task].values() for at in line).values()) > 1
        count = len(rows[task]) if meet else 1
        for place, (label, line) in enumerate(rows[task].items()):
            x = sorted(line)
            mean, std = [line[at].mean for at in x], [line[at].std or 0 for at in x]
            drawn = panel.errorbar(x, mean, yerr=std, elinewidth=1, capsize=2, alpha=0.85, **styles[label])
            dodge(panel, drawn, place if meet else 0, count)
        panel.set_xlabel(title)
        _line_ticks(panel, sorted({at for line in rows[task].values() for at in line}))
    return figure


def _points(groups: list[Group], name: str) -> dict[Task, Lines]:
    having = [group for group in groups if isinstance(group.settings.get(name), (int, float))]
    rows: dict[Task, Lines] = defaultdict(lambda: defaultdict(dict))
    for group, label in label_groups(having, (name, *MOVES_WITH.get(name, ()))).items():
        rows[group.task][label][group.settings[name]] = spread_of(by_seed(group).values())
    return rows


def _line_ticks(panel: Axes, values: list[float]) -> None:
    """A density runs from 0 to 1; whole numbers double, with a tick for each value that has room."""
    if values[-1] <= 1:
        panel.set_xlim(0, 1.04)
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        return
    panel.set_xscale("log", base=2)
    ticks = values[:1]
    ticks += [value for before, value in pairwise(values) if value / before > 1.3]
    panel.set_xticks(ticks, [f"{value:g}" for value in ticks])


TICKS = 4  # at most, beside 0
SPREAD = 4  # from here on a logarithmic axis has two round ticks


def parameters(table: Comparison) -> Figure:
    """A point for each method, with its deviation over seeds; a line through those that no other one dominates."""
    rows = {task: list(table.row(task).values()) for task in table.tasks}
    rows = {task: cells for task, cells in rows.items() if len({cell.trainable for cell in cells}) > 1}
    if not rows:
        raise Undrawn("no task has two methods with different numbers of trainable parameters")
    names = _series([cell.group for cells in rows.values() for cell in cells])
    styles = styles_of(names.values())
    figure, panels = task_panels(list(rows), styles)
    for task, panel in panels.items():
        series: dict[int, list[str]] = defaultdict(list)  # at each number of parameters
        for cell in rows[task]:
            if names[cell.group] not in series[cell.trainable]:
                series[cell.trainable].append(names[cell.group])
        for cell in rows[task]:
            spread, name, there = cell.spread, names[cell.group], series[cell.trainable]
            drawn = panel.errorbar(cell.trainable, spread.mean, spread.std, elinewidth=1, alpha=0.85, **styles[name])
            dodge(panel, drawn, there.index(name), len(there))
        front = pareto(rows[task])
        x, y = [cell.trainable for cell in front], [cell.spread.mean for cell in front]
        panel.step(x, y, where="post", color=QUIET, linewidth=1, linestyle="--", zorder=1)
        _scale(panel, [cell.trainable for cell in rows[task]])
        panel.set_xlabel("trainable parameters")
    return figure


def pareto(cells: list[Cell]) -> list[Cell]:
    """By parameters, the cells whose mean is above that of every cell with as few parameters or fewer."""
    front: list[Cell] = []
    for cell in sorted(cells, key=lambda cell: (cell.trainable, -cell.spread.mean)):
        if not front or cell.spread.mean > front[-1].spread.mean:
            front.append(cell)
    return front


def _series(groups: list[Group]) -> dict[Group, str]:
    """As fine as colours and marks go: a series for each label, for all ranks together, or for a method."""
    for along in ((), ("adapter.r",)):
        labels = label_groups(groups, along)
        if len(set(labels.values())) <= len(SERIES):
            return labels
    return {group: group.method for group in groups}


def _scale(panel: Axes, counts: list[int]) -> None:
    """Logarithmic where counts spread; then a method that trains the head only has a linear piece from 0."""
    least, most = min(count for count in counts if count), max(counts)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    if most < SPREAD * least:
        panel.xaxis.set_major_locator(MaxNLocator(TICKS))
        return
    ticks = _ticks(least, most)
    if 0 in counts:
        panel.set_xscale("symlog", linthresh=least, linscale=0.6)
        ticks = [0, *ticks]
    else:
        panel.set_xscale("log")
    panel.set_xticks(ticks)
    panel.set_xticks([], minor=True)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _ticks(least: int, most: int) -> list[float]:
    """Round numbers between the two, or these themselves with two digits."""
    powers = range(int(math.log10(least)), int(math.log10(most)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10**power for power in powers for step in steps if least <= step * 10**power <= most]
        if len(ticks) <= TICKS:
            break
    return ticks if len(ticks) > 1 else [float(f"{count:.1e}") for count in (least, most)]


BEST = "#cf222e"
AXES = ("adapter.alpha", "train.lr")
Map = dict[tuple[float, float], Spread]  # by alpha and rate


def scale(groups: list[Group]) -> Figure:
    """A map for each task and method with two cells or more, tasks in rows; each task has one range of colours."""
    maps = {
        task: {label: cells for label, cells in of.items() if len(cells) > 1} for task, of in _maps(groups).items()
    }
    maps = {task: of for task, of in maps.items() if of}
    if not maps:
        raise Undrawn("no method has two pairs of alpha and learning rate on a task, its other settings equal")
    names, titles = task_names(list(maps)), []
    for task, of in maps.items():
        labels = [label.replace(" (", "\n(", 1) for label in of]
        titles.append([f"{names[task]}, {task.metric}\n{label}" for label in labels])
    drawn = [(cells, task.metric, *_range(of)) for task, of in maps.items() for cells in of.values()]
    rates, alphas = (max(len({at[axis] for at in cells}) for cells, *_ in drawn) for axis in (1, 0))
    figure, panels = grid(titles, {}, 0.58 * rates + 1.0, 0.42 * alphas + 1.0)
    for panel, (cells, metric, low, high) in zip(panels, drawn, strict=True):
        _draw(panel, cells, metric, low, high)
    return figure


def _range(maps: dict[str, Map]) -> tuple[float, float]:
    means = [of.mean for cells in maps.values() for of in cells.values()]
    return min(means), max(means)


def _maps(groups: list[Group]) -> dict[Task, dict[str, Map]]:
    maps: dict[Task, dict[str, Map]] = defaultdict(lambda: defaultdict(dict))
    having = [group for group in groups if _is_cell(group)]
    labels = label_groups(having, AXES)
    for group in sorted(labels, key=lambda group: (group.task, natural_order(labels[group]))):
        alpha, rate = (group.settings[name] for name in AXES)
        maps[group.task][labels[group]][alpha or group.settings["adapter.r"], rate] = spread_of(
            by_seed(group).values()
        )
    return maps


def _is_cell(group: Group) -> bool:
    """Whether alpha and rate were given: one that was selected from a grid is the text of the grid."""
    alpha, rate = (group.settings.get(name, "") for name in AXES)
    return isinstance(alpha, (int, float, type(None))) and isinstance(rate, (int, float))


def _draw(panel: Axes, cells: Map, metric: str, low: float, high: float) -> None:
    alphas, rates = (sorted({at[axis] for at in cells}) for axis in (0, 1))
    means = [[of.mean if (of := cells.get((alpha, rate))) else float("nan") for rate in rates] for alpha in alphas]
    panel.imshow(means, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    best = max(cells, key=lambda at: worth(metric, cells[at].mean))
    for (alpha, rate), of in cells.items():
        x, y = rates.index(rate), alphas.index(alpha)
        light = of.mean > low + 0.6 * (high - low)
        weight = "bold" if (alpha, rate) == best else "normal"
        panel.text(
            x, y, f"{of.mean:.1f}", ha="center", va="center", color=INK if light else "white", fontweight=weight
        )
    corner = (rates.index(best[1]) - 0.5, alphas.index(best[0]) - 0.5)
    panel.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=BEST, linewidth=2.5, clip_on=False, zorder=3))
    panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    panel.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    panel.grid(visible=False)
    panel.set(xlabel="learning rate", ylabel="alpha")


def _groups(table: Comparison) -> list[Group]:
    return [cell.group for cell in table.cells.values()]


PLOTS: dict[str, Callable[[Comparison], Figure]] = {
    "parameters": parameters,
    "rank": lambda table: lines(_groups(table), "adapter.r", "r"),
    "modules": lambda table: lines(_groups(table), "adapter.num_tied", "d"),
    "density": lambda table: lines(_groups(table), "adapter.density", "density"),
    "differences": differences,
    "scale": lambda table: scale(_groups(table)),
}


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot hold the plots.

    Raises:
        UserError: If one of the files cannot be written.
    """
    check_outputs("--plots", *(path for name in PLOTS for path in image_files(folder / name)))


def draw_results(table: Comparison, folder: Path) -> Iterator[str]:
    """Write the plots into a folder, each as PNG and SVG.

    Yields:
        The name of each file, or a line that says why a plot is not drawn.
    """
    with matplotlib.rc_context(STYLE):
        for name, plot in PLOTS.items():
            try:
                yield from map(str, write_figure(plot(table), folder / name))
            except Undrawn as why:
                yield f"{name} is not drawn: {why}"
