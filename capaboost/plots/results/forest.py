"""Paired differences to the reference with their intervals."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capaboost.plots.results.panels import Undrawn
from capaboost.plots.style import COLORS, INK, QUIET
from capaboost.tables.compare import Comparison
from capaboost.tables.layout import difference_text
from capaboost.tables.notes import task_names
from capaboost.tables.statistics import Difference

LINE = 0.23  # inches


def differences(table: Comparison) -> Figure:
    """A line for each task and method: mean difference, 95 % interval, and both as numbers.

    Without an interval, of one pair of seeds, the point is hollow.
    """
    if table.reference is None:
        raise Undrawn("there is no method to compare with; give --compare METHOD")
    rows = _rows(table)
    if sum(of is not None for _, of, _ in rows) < 2:
        raise Undrawn(f"fewer than two methods and tasks share a seed with {table.reference}")
    figure = Figure(figsize=(7.2, LINE * len(rows) + 1.1), layout="constrained")
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
