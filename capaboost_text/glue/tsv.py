"""Rows of a tab-separated file as GLUE has them: no quoting, a quote is a character like any other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from capaboost_core.errors import UserError, shown

AGAIN = "correct it, or fetch the file again"


class Row(NamedTuple):
    """The wanted cells of a row, and the number of its line from 1."""

    line: int
    cells: tuple[str, ...]


def read_rows(
    path: Path, wanted: Sequence[str], columns: Sequence[str] | None = None, tolerated: int = 0
) -> list[Row]:
    """Read the wanted columns of a whole file; empty lines count as none.

    Args:
        path: The file, in UTF-8.
        wanted: Names of the columns, in the order of the cells returned.
        columns: Names of all columns where the file has no header.
        tolerated: Up to so many rows with too few columns are left out with a warning.

    Raises:
        UserError: If the file cannot be read, holds no rows, lacks a column, or has a row with the wrong
            number of columns; it names file and line.
    """
    lines = _split_lines(path)
    if columns is None:
        number, columns = next(lines, (1, []))
        _check_header(path, number, columns, wanted)
    places = [list(columns).index(name) for name in wanted]
    rows, broken = [], []
    for number, cells in lines:
        if len(cells) == len(columns):
            rows.append(Row(number, tuple(cells[i] for i in places)))
        elif len(cells) < len(columns) and len(broken) < tolerated:
            broken.append(number)
        else:
            raise UserError(f"{path}, line {number} has {len(cells)} columns where {len(columns)} belong; {AGAIN}")
    if not rows:
        raise UserError(f"{path} holds no rows; fetch the file again")
    if broken:
        warnings.warn(f"{path}: left out {len(broken)} broken rows, the first in line {broken[0]}", stacklevel=2)
    return rows


def _check_header(path: Path, number: int, columns: Sequence[str], wanted: Sequence[str]) -> None:
    if not columns:
        raise UserError(f"{path} is empty; fetch the file again")
    for name in wanted:
        if name not in columns:
            found = shown(", ".join(columns))
            raise UserError(f"{path}, line {number}: the header has no column {name!r} but {found}; {AGAIN}")


def _split_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Only a line feed ends a line: texts may hold other characters that Python takes for line ends."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line := line.removesuffix("\n").removesuffix("\r"):
                    yield number, line.split("\t")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a readable TSV file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; fetch the file again") from error
