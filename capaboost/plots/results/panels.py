"""What plots of result files share: a panel for each task, a colour and a mark for each series."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from capaboost.plots.style import SERIES
from capaboost.tables.groups import Task
from capaboost.tables.labels import natural_order
from capaboost.tables.notes import task_names

Style = dict[str, str]
WIDTH, HEIGHT = 3.2, 2.7  # inches of a panel
BESIDE = 4  # panels
LETTER = 0.075  # inches of an average letter of a legend


class Undrawn(Exception):
    """The results do not hold what a plot needs; the message says what."""


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A colour and a mark for each series, in natural order.

    Raises:
        Undrawn: If there are more than can be told apart.
    """
    found = sorted(set(names), key=natural_order)
    if len(found) > len(SERIES):
        raise Undrawn(f"{len(found)} series are too many to tell apart; give a folder with at most {len(SERIES)}")
    return {name: {"color": color, "marker": marker} for name, (color, marker) in zip(found, SERIES, strict=False)}


def grid(titles: list[str | None], legend: dict[str, Style], width: float = WIDTH, height: float = HEIGHT):
    """A figure, and a panel for each title, row by row, with a legend below all; None leaves a place free."""
    columns = min(len(titles), BESIDE)
    rows = math.ceil(len(titles) / columns)
    across = max(width * columns, 4.2)
    longest = max(map(len, legend), default=0) * LETTER + 0.5
    beside = max(1, min(int(across / longest), len(legend)))
    figure = Figure(figsize=(across, height * rows + 0.2 * math.ceil(len(legend) / beside)), layout="constrained")
    places = [(number, title) for number, title in enumerate(titles, 1) if title is not None]
    panels = [figure.add_subplot(rows, columns, number, title=title) for number, title in places]
    if legend:
        handles = [Line2D([], [], label=name, linestyle="", **style) for name, style in legend.items()]
        figure.legend(handles=handles, loc="outside lower left", ncols=beside, frameon=False)
    return figure, panels


def task_panels(tasks: list[Task], legend: dict[str, Style]) -> tuple[Figure, dict[Task, Axes]]:
    """A panel for each task, with its metric on the y axis."""
    figure, panels = grid(list(task_names(tasks).values()), legend)
    for task, panel in zip(tasks, panels, strict=True):
        panel.set_ylabel(task.metric)
        panel.margins(0.1)
    return figure, dict(zip(tasks, panels, strict=True))
