"""Tables as Markdown, CSV and on the terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from rich.table import Table

from capaboost.tables.layout import Layout, Text
from capaboost_core import UserError
from capaboost_core.console import show_table
from capaboost_core.errors import reason_of
from capaboost_core.markdown import markdown_table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


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


def fill(path: Path, table: str) -> str:
    """The text of the file with the table between its markers.

    Raises:
        UserError: If the file cannot be read, or the markers are not there in this order.
    """
    try:
        before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}; give the path of a text file") from error
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path} has no place for the table; add the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


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
