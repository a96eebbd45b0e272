"""Value against trainable parameters, with the Pareto front."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from capaboost.plots.results.panels import Undrawn, styles_of, task_panels
from capaboost.plots.style import QUIET, SERIES
from capaboost.tables.compare import Cell, Comparison
from capaboost.tables.groups import Group
from capaboost.tables.labels import label_groups

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
        for cell in rows[task]:
            spread, style = cell.spread, styles[names[cell.group]]
            panel.errorbar(cell.trainable, spread.mean, yerr=spread.std, elinewidth=1, alpha=0.85, **style)
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
