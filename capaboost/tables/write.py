"""A table of results as text: on the terminal, in Markdown and LaTeX, and as CSV records of raw numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from capaboost.console import markdown_table, show_table
from capaboost.tables.compare import Cell, Comparison
from capaboost.tables.groups import Task
from capaboost.tables.notes import notes_on, settings_lines, task_names, usual_settings, varying
from capaboost.tables.rows import TITLES, Row
from capaboost.tables.statistics import Difference
from capaboost_core import UserError
from capaboost_core.errors import reason_of


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


REGION = "<!-- {}:begin -->", "<!-- {}:end -->"
BEGIN, END = (line.format("results") for line in REGION)


def to_markdown(layout: Layout) -> str:
    """The table, the best cell of a task in bold, and the notes as a list."""
    table = markdown_table(layout.titles, [[_markdown_cell(text) for text in row] for row in layout.rows])
    notes = "".join(f"- {note}\n" for note in layout.notes)
    return f"{table}\n{notes}" if notes else table


def _markdown_cell(text: Text) -> str:
    first, *others = text.lines
    return "<br>".join([f"**{first}**" if text.is_best else first, *others])


def to_csv(records: list[dict[str, Any]]) -> str:
    """Raw numbers, a line for each record; None is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def fill(path: Path, table: str, region: str = "results") -> str:
    """The text of the file with the table between the markers of the region.

    Raises:
        UserError: If the file cannot be read, or the markers are not there in this order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}; give the path of a text file") from error
    return put(text, table, region, path)


def put(text: str, table: str, region: str, path: Path) -> str:
    """The text, which is that of the file, with the table between the markers of the region.

    Raises:
        UserError: If the markers are not there in this order.
    """
    begins, ends = (line.format(region) for line in REGION)
    before, begin, rest = text.partition(begins)
    _, end, after = rest.partition(ends)
    if not begin or not end:
        raise UserError(f"{path} has no place for the table; add the lines {begins} and {ends}")
    return f"{before}{begins}\n\n{table}\n{ends}{after}"


def show(layout: Layout) -> None:
    """Print the table, the best cell of a task with a star, and the notes below it."""
    table = Table(show_lines=any(len(text.lines) > 1 for row in layout.rows for text in row))
    for title in layout.titles:
        table.add_column(title, overflow="fold")
    for row in layout.rows:
        table.add_row(*("\n".join([text.lines[0] + " *" * text.is_best, *text.lines[1:]]) for text in row))
    show_table(table)
    for note in layout.notes:
        print(note)


# What LaTeX reads as a command, or sets as another character in its default encodings.
ESCAPED = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": "$-$",
}
ESCAPES = str.maketrans(ESCAPED)


def to_latex(layout: Layout) -> str:
    r"""A tabular with the rules of booktabs, and the notes as a paragraph, for `\input` in a table environment.

    A cell of two lines takes two lines of the tabular, the second smaller; the best cell of a task is bold.
    """
    columns = "l" * layout.numeric + "c" * (len(layout.titles) - layout.numeric)
    lines = ["% in the preamble: \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [_line([escape(title) for title in layout.titles]), "\\midrule"]
    for row in layout.rows:
        lines += _latex_row(row)
    lines += ["\\bottomrule", "\\end{tabular}"]
    notes = [f"\\par\\smallskip{{\\footnotesize {' '.join(map(escape, layout.notes))}\\par}}"]
    return "\n".join(lines + (notes if layout.notes else [])) + "\n"


def escape(text: str) -> str:
    """The text as LaTeX shows it, on one line."""
    return " ".join(text.split()).translate(ESCAPES)


def _latex_row(row: list[Text]) -> Iterator[str]:
    for number in range(max(len(text.lines) for text in row)):
        yield _line([_latex_cell(text, number) if number < len(text.lines) else "" for text in row])


def _latex_cell(text: Text, number: int) -> str:
    shown = escape(text.lines[number])
    if number:
        return f"{{\\scriptsize {shown}}}"
    return f"\\textbf{{{shown}}}" if text.is_best else shown


def _line(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


MEASURED = ("settings", "trainable_parameters", "seeds", "missing_seeds", "mean", "std", "best")
MEASURED += ("difference", "low", "high", "pairs")
JUDGED = ("holm_low", "holm_high", "holm_p", "equivalence_p", "pairs_needed", "pooled", "verdict")


def records_of(table: Comparison) -> list[dict[str, Any]]:
    """What the CSV file holds; a method that did not run on a task has 0 seeds there."""
    groups = [cell.group for cell in table.cells.values()]
    return [
        {**task._asdict(), "method": method, "reference": table.reference}
        | (_measured(cell, groups) if (cell := table.cells.get((task, method))) else _absent(table, task))
        for task in table.tasks
        for method in table.methods
    ]


def _measured(cell: Cell, groups: list) -> dict[str, Any]:
    low, high = (cell.difference and cell.difference.interval) or (None, None)
    values = (
        cell.group.shown_settings(groups),
        cell.trainable,
        cell.spread.count,
        _listed(cell.missing),
        cell.spread.mean,
        cell.spread.std,
        cell.is_best,
        cell.difference and cell.difference.mean,
        low,
        high,
        cell.difference.pairs if cell.difference else None,
    )
    of = cell.verdict
    judged = (*of.interval, of.p, of.p_equivalent, of.needed, of.pooled, str(of)) if of else (None,) * len(JUDGED)
    return dict(zip(MEASURED + JUDGED, (*values, *judged), strict=True))


def _absent(table: Comparison, task: Task) -> dict[str, Any]:
    return dict.fromkeys(MEASURED + JUDGED) | {"seeds": 0, "missing_seeds": _listed(table.seeds(task))}


def _listed(seeds: list[int]) -> str:
    return " ".join(map(str, seeds))
