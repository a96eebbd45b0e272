"""What tables of any format show: titles, cells and notes."""

from __future__ import annotations

from dataclasses import dataclass, field

from capaboost.tables.compare import Cell, Comparison
from capaboost.tables.groups import Task
from capaboost.tables.notes import notes_on, settings_lines, task_names, usual_settings, varying
from capaboost.tables.rows import TITLES, Row
from capaboost.tables.statistics import Difference


@dataclass(frozen=True)
class Text:
    """A cell: its lines, and whether it is the best of its task."""

    lines: tuple[str, ...]
    is_best: bool = False


@dataclass(frozen=True)
class Layout:
    """A table without a format; every row has a cell for each title.

    Attributes:
        numeric: Index of the first title whose column holds numbers.
        notes: Sentences below the table.
    """

    titles: tuple[str, ...]
    rows: list[list[Text]]
    numeric: int
    notes: list[str] = field(default_factory=list)


def of_rows(rows: list[Row], notes: list[str]) -> Layout:
    """A line for each row: method and settings below each other."""
    return Layout(TITLES, [[Text((cell,)) for cell in row.cells()] for row in rows], len(TITLES), notes)


def of_comparison(table: Comparison, notes: list[str]) -> Layout:
    """A line for each task, a column for each method: its value, and below it the difference to the reference.

    In a ranking a line for each method, a column for each task.
    """
    return _ranking(table, notes) if table.is_ranking else _by_task(table, notes)


def _ranking(table: Comparison, notes: list[str]) -> Layout:
    fixed = ("method", "settings", "trainable")
    tasks = [f"{name} ({task.metric})" for task, name in task_names(table.tasks).items()]
    rows, usual = [], usual_settings(table)
    for method in table.methods:
        cells = ((method,), settings_lines(table, method, usual), (_trainable(table, method),))
        rows.append([*map(Text, cells), *_values(table, method)])
    return Layout((*fixed, *tasks), rows, fixed.index("trainable"), notes_on(table) + notes)


def _trainable(table: Comparison, method: str) -> str:
    """The number, or the least and the most where tasks differ."""
    counts = [cell.trainable for (_, name), cell in table.cells.items() if name == method]
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _values(table: Comparison, method: str) -> list[Text]:
    missing = Text(("missing",))
    return [
        _cell(cell, len(table.seeds(task))) if (cell := table.cells.get((task, method))) else missing
        for task in table.tasks
    ]


def _by_task(table: Comparison, notes: list[str]) -> Layout:
    names = varying(table.tasks)
    rows = [_row(table, task, names) for task in table.tasks]
    titles = ("task", *(name for name in names if name != "task"), "seeds", *table.methods)
    return Layout(titles, rows, titles.index("seeds"), notes_on(table) + notes)


def _row(table: Comparison, task: Task, names: list[str]) -> list[Text]:
    fixed = [getattr(task, name) for name in names]
    cells = table.row(task)
    seeds = len(table.seeds(task))
    values = [_cell(cells[method], seeds) if method in cells else Text(("missing",)) for method in table.methods]
    return [*(Text((text,)) for text in (*fixed, str(seeds))), *values]


def _cell(cell: Cell, seeds: int) -> Text:
    of = cell.spread
    value = number(of.mean) if of.std is None else f"{number(of.mean)} ± {of.std:.2f}"
    value += f" ({of.count} of {seeds} seeds)" if cell.missing else ""
    lines = [difference_text(cell.difference, seeds)] if cell.difference else []
    return Text((value, *lines, *([str(cell.verdict)] if cell.verdict else [])), cell.is_best)


def difference_text(of: Difference, seeds: int) -> str:
    """`+0.16 [−0.92, +1.24]`, with the number of pairs where they are fewer than the seeds."""
    if of.interval is None:
        return f"{number(of.mean, '+')} (1 pair, no interval)"
    low, high = (number(end, "+") for end in of.interval)
    pairs = "" if of.pairs == seeds else f" ({of.pairs} pairs)"
    return f"{number(of.mean, '+')} [{low}, {high}]{pairs}"


def number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}".replace("-", "−")
