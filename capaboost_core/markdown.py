"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import DataRow, TableFormat, tabulate


def _rule(widths: Sequence[int], aligns: Sequence[str]) -> str:
    return f"| {' | '.join('---' for _ in widths)} |"


# GitHub's, without padding, so that a change of one cell changes one line.
_ROW = DataRow("| ", " | ", " |")
_GITHUB = TableFormat(None, _rule, None, None, headerrow=_ROW, datarow=_ROW, padding=0, with_header_hide=None)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line for each row; bars within cells are escaped."""
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    return tabulate(cells, list(titles), _GITHUB, disable_numparse=True, stralign=None) + "\n"
