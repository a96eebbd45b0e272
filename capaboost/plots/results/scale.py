"""Heat maps of the value over alpha and learning rate."""

from __future__ import annotations

from collections import defaultdict

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from capaboost.plots.results.panels import BESIDE, Undrawn, grid
from capaboost.plots.style import INK
from capaboost.tables.compare import by_seed
from capaboost.tables.groups import Group, Task
from capaboost.tables.labels import label_groups, natural_order
from capaboost.tables.notes import task_names
from capaboost.tables.statistics import Spread, spread_of

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
    beside = min(BESIDE, max(len(of) for of in maps.values()))
    for task, of in maps.items():
        labels = [label.replace(" (", "\n(", 1) for label in of]
        titles += [f"{names[task]}, {task.metric}\n{label}" for label in labels] + [None] * (-len(of) % beside)
    drawn = [(cells, *_range(of)) for of in maps.values() for cells in of.values()]
    rates, alphas = (max(len({at[axis] for at in cells}) for cells, *_ in drawn) for axis in (1, 0))
    figure, panels = grid(titles, {}, 0.58 * rates + 1.0, 0.42 * alphas + 1.0)
    for panel, (cells, low, high) in zip(panels, drawn, strict=True):
        _draw(panel, cells, low, high)
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


def _draw(panel: Axes, cells: Map, low: float, high: float) -> None:
    alphas, rates = (sorted({at[axis] for at in cells}) for axis in (0, 1))
    means = [[of.mean if (of := cells.get((alpha, rate))) else float("nan") for rate in rates] for alpha in alphas]
    panel.imshow(means, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    best = max(cells, key=lambda at: cells[at].mean)
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
