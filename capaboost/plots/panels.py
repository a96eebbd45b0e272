"""What plots of result files share, and the plot of paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from capaboost.plots.style import COLORS, INK, QUIET, SERIES
from capaboost.tables.compare import Cell, Comparison
from capaboost.tables.groups import Task, natural_order
from capaboost.tables.notes import task_names
from capaboost.tables.statistics import Difference
from capaboost.tables.write import difference_text
from capaboost.training.run_folder import worth
from capaboost_core.methods import METHODS
from capaboost_core.methods.bottleneck import PAdapter
from capaboost_core.methods.prefix import PrefixTuning
from capaboost_core.methods.vpt import VPT

Style = dict[str, Any]
PANEL_WIDTH, PANEL_HEIGHT = 3.2, 2.7  # inches of a panel
MAX_COLUMNS = 4  # panels
LETTER_WIDTH = 0.075  # inches of an average letter of a legend


class Undrawn(Exception):
    """The results do not hold what a plot needs; the message says what."""


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A colour and a mark for each series, in natural order.

    Raises:
        Undrawn: If there are more than can be distinguished.
    """
    found = sorted(set(names), key=natural_order)
    if len(found) > len(SERIES):
        raise Undrawn(f"{len(found)} series are too many to tell apart; give a folder with at most {len(SERIES)}")
    return {name: {"color": color, "marker": marker} for name, (color, marker) in zip(found, SERIES, strict=False)}


def grid(parts: list[list[str]], legend: dict[str, Style], width: float = PANEL_WIDTH, height: float = PANEL_HEIGHT):
    """A figure, and a panel for each title, with a legend below all.

    A part begins on a row of its own. Its rows differ by one panel at most, and shorter ones stand in the middle.
    """
    filled = [row for titles in parts for row in _rows_of(titles)]
    columns, rows = max(map(len, filled)), len(filled)
    across = max(width * columns, 4.2)
    longest = max(map(len, legend), default=0) * LETTER_WIDTH + 0.5
    beside = max(1, min(int(across / longest), len(legend)))
    figure = Figure(figsize=(across, height * rows + 0.2 * math.ceil(len(legend) / beside)), layout="constrained")
    panels = _placed(figure, filled)
    if legend:
        handles = [Line2D([], [], label=name, linestyle="", **style) for name, style in legend.items()]
        figure.legend(handles=handles, loc="outside lower left", ncols=beside, frameon=False)
    return figure, panels


def _placed(figure: Figure, rows: list[list[str]]) -> list[Axes]:
    """A panel for each title, shorter rows in the middle."""
    columns = max(map(len, rows))
    halves, panels = figure.add_gridspec(len(rows), 2 * columns), []
    for down, row in enumerate(rows):
        for at, title in enumerate(row):
            first = columns - len(row) + 2 * at
            panels.append(figure.add_subplot(halves[down, first : first + 2]))
            panels[-1].set_title(title, loc="left")
    return panels


def _rows_of(titles: list[str], most: int = MAX_COLUMNS) -> list[list[str]]:
    rows = math.ceil(len(titles) / most)
    ends = [math.ceil(len(titles) * (row + 1) / rows) for row in range(rows)]
    return [titles[start:end] for start, end in pairwise([0, *ends])]


DODGE, WIDEST_DODGE = 5.0, 18.0  # points between two series, and between the outermost


def dodge(panel: Axes, drawn: Container, place: int, count: int) -> None:
    """Move one of so many series with points at the same x aside, so that their bars do not hide each other."""
    figure = panel.get_figure(root=True)
    assert figure is not None
    aside = (place - (count - 1) / 2) * min(DODGE, WIDEST_DODGE / max(count - 1, 1))
    for artist in drawn.get_children():
        artist.set_transform(panel.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans))


def task_panels(tasks: list[Task], legend: dict[str, Style]) -> tuple[Figure, dict[Task, Axes]]:
    """A panel for each task, with its metric on the y axis."""
    figure, panels = grid([list(task_names(tasks).values())], legend)
    for task, panel in zip(tasks, panels, strict=True):
        panel.set_ylabel(task.metric)
        panel.margins(0.1)
    return figure, dict(zip(tasks, panels, strict=True))


ROW_HEIGHT, SMALL_ROW_HEIGHT = 0.23, 0.14  # inches
FAMILIES = {
    "increments of weights": COLORS[2],
    "adapters": COLORS[4],
    "prompts and prefixes": "#0969da",
    "scales, biases, all or no weights": "#1a7f37",
}


def differences(table: Comparison) -> Figure:
    """A line for each task and method: mean difference, 95 % interval, and both as numbers.

    Without an interval, of one pair of seeds, the point is hollow.
    """
    if table.reference is None:
        raise Undrawn("there is no method to compare with; give --compare METHOD")
    rows = _rows(table)
    if sum(of is not None for _, of, _ in rows) < 2:
        raise Undrawn(f"fewer than two methods and tasks share a seed with {table.reference}")
    if table.is_ranking:
        return _ranked(table)
    figure = Figure(figsize=(7.2, ROW_HEIGHT * len(rows) + 1.1), layout="constrained")
    panel = figure.subplots()
    for row, (_, of, seeds) in enumerate(rows):
        if of is not None:
            _draw(panel, row, of, seeds)
    panel.axvline(0, color=QUIET, linewidth=1, linestyle=":", zorder=1)
    panel.set_yticks(range(len(rows)), [text for text, _, _ in rows])
    for tick, (_, of, _) in zip(panel.get_yticklabels(), rows, strict=True):
        tick.set(color=INK, fontweight="normal" if of else "bold")
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    metrics = ", ".join(sorted({task.metric for (task, _), cell in table.cells.items() if cell.difference}))
    panel.set(xlabel=f"{metrics}, difference to {table.reference}: mean over seeds and 95 % interval")
    return figure


def _ranked(table: Comparison) -> Figure:
    """Of many methods: tasks side by side, each sorted by the difference, coloured by family.

    A filled point is a difference by its verdict; a hollow one is open, equivalent, or of one pair.
    """
    names = {task: name for task, name in task_names(table.tasks).items() if _differing(table, task)}
    rows, most = _rows_of(list(names.values()), most=2), max(len(_differing(table, task)) for task in names)
    beside = len(rows[0])  # panels, and families of the legend
    height = len(rows) * (SMALL_ROW_HEIGHT * most + 0.7) + 0.2 * math.ceil(len(FAMILIES) / beside)
    figure = Figure(figsize=(3.6 * beside, height), layout="constrained")
    for panel, task in zip(_placed(figure, rows), names, strict=True):
        cells = sorted(_differing(table, task), key=lambda item: -worth(task.metric, item[2].mean))
        for row, (_, cell, of) in enumerate(cells):
            color = FAMILIES[family_of(cell)]
            filled = cell.verdict is not None and cell.verdict.differs
            if of.interval:
                panel.plot(of.interval, [row, row], color=color, linewidth=1, solid_capstyle="butt")
            face = color if filled else "white"
            panel.plot([of.mean], [row], "o", color=color, markerfacecolor=face, markersize=3.5)
        panel.axvline(0, color=QUIET, linewidth=1, linestyle=":", zorder=1)
        panel.set_yticks(range(len(cells)), [method for method, _, _ in cells], fontsize=6.5)
        for tick, (_, cell, _) in zip(panel.get_yticklabels(), cells, strict=True):
            tick.set_color(FAMILIES[family_of(cell)])
        panel.tick_params(axis="y", length=0)
        panel.set_ylim(len(cells) - 0.4, -0.6)
        means = [of.mean for _, _, of in cells]
        room = 0.15 * (max(*means, 0) - min(*means, 0))
        panel.set_xlim(min(*means, 0) - room, max(*means, 0) + room)  # an interval may go on outside
        panel.set(xlabel=f"{task.metric}, difference to {table.reference}")
    handles = [
        Line2D([], [], label=family, color=color, marker="o", linestyle="") for family, color in FAMILIES.items()
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=beside, frameon=False, fontsize=8)
    return figure


def _differing(table: Comparison, task: Task) -> list[tuple[str, Cell, Difference]]:
    return [(method, cell, cell.difference) for method, cell in table.row(task).items() if cell.difference]


def family_of(cell: Cell) -> str:
    """What the method of a cell adds."""
    method = cell.group.runs[0].get("config", {}).get("adapter", {}).get("method")
    cls = METHODS.get(method)
    if cls and issubclass(cls, (PrefixTuning, VPT)):
        return "prompts and prefixes"
    if cls and cls.recipe == PAdapter.name:
        return "adapters"
    return "increments of weights" if cls and "r" in cls.model_fields else "scales, biases, all or no weights"


def _rows(table: Comparison) -> list[tuple[str, Difference | None, int]]:
    """The text of each line, its difference (None for the heading of a task) and the number of seeds."""
    rows: list[tuple[str, Difference | None, int]] = []
    for task, name in task_names(table.tasks).items():
        cells = {method: cell.difference for method, cell in table.row(task).items() if cell.difference}
        rows += [(name, None, 0)] if cells else []
        rows += [(method, of, len(table.seeds(task))) for method, of in cells.items()]
    return rows


def _draw(panel: Axes, row: int, of: Difference, seeds: int) -> None:
    if of.interval:
        panel.plot(of.interval, [row, row], color=COLORS[2], solid_capstyle="butt")
    panel.plot([of.mean], [row], "o", color=COLORS[2], markerfacecolor=COLORS[2] if of.interval else "white")
    right = {"transform": panel.get_yaxis_transform(), "va": "center", "fontsize": 8, "color": QUIET}
    panel.text(1.02, row, difference_text(of, seeds), **right)
