"""The result table as Markdown, CSV and on the terminal."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path

from rich.table import Table

from capaboost.tables.rows import TITLES, Row
from capaboost_core import UserError
from capaboost_core.console import show_table
from capaboost_core.errors import reason_of
from capaboost_core.markdown import markdown_table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def to_markdown(rows: list[Row]) -> str:
    return markdown_table(TITLES, [row.cells() for row in rows])


def to_csv(rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
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


def show(rows: list[Row]) -> None:
    table = Table()
    for title in TITLES:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row.cells())
    show_table(table)
