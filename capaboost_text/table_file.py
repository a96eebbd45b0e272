"""Rows of a table in a file: tab-separated without quoting, as GLUE has them, or comma-separated with quoting."""

from __future__ import annotations

import csv
import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from capaboost_core.errors import UserError, reason_of, shown

SURROGATE = re.compile("[\ud800-\udfff]")
AGAIN = "correct it, or fetch the file again"


class MissingColumn(UserError):
    """A table lacks a column; the line ends with `AGAIN`."""


class Row(NamedTuple):
    """The wanted cells of a row, and the number of its line from 1."""

    line: int
    cells: tuple[Any, ...]


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
        raise UserError(f"{path} holds no rows below its header; add some, or fetch the file again")
    if broken:
        warnings.warn(f"{path}: left out {len(broken)} broken rows, the first in line {broken[0]}", stacklevel=2)
    return rows


def _check_header(path: Path, number: int, columns: Sequence[str], wanted: Sequence[str]) -> None:
    if not columns:
        raise UserError(f"{path} is empty; write a header such as text,label and rows, or fetch the file again")
    for name in wanted:
        if name not in columns:
            found = shown(", ".join(columns))
            raise MissingColumn(f"{path}, line {number}: the header has no column {name!r} but {found}; {AGAIN}")
        if list(columns).count(name) > 1:
            raise UserError(f"{path}, line {number}: the header has {name!r} more than once; rename one of them")


def _split_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each line that is not empty, and its cells."""
    split = _split_commas if path.suffix.lower() == ".csv" else _split_tabs
    with opened(path) as file:
        yield from split(file, path)


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A file of text to read, a byte-order mark passed over and line ends as they are.

    Raises:
        UserError: If it cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a readable file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; save it as UTF-8, or fetch the file again") from error


def _split_tabs(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Only a line feed ends a line: texts may hold other characters that Python takes for line ends."""
    for number, line in enumerate(file, 1):
        if line := line.removesuffix("\n").removesuffix("\r"):
            yield number, line.split("\t")


def _split_commas(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """As RFC 4180 has it: a quoted cell may hold commas, line feeds and doubled quotes, and be of any length."""
    rows, begun = csv.reader(file, strict=True), 1
    while True:
        limit = csv.field_size_limit(sys.maxsize)  # of the process; Python's own is 131,072 characters
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {begun}: {error}; quote cells as CSV wants, or save as .jsonl") from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if cells:
            yield begun, cells
        begun = rows.line_num + 1


def check_characters(where: str, name: str, text: str) -> None:
    """Refuse half a surrogate pair: legal in JSON, but no tokenizer takes it.

    Raises:
        UserError: If the text holds one.
    """
    if SURROGATE.search(text):
        raise UserError(f"{where}: {name} holds half a surrogate pair, which is not a character; correct the text")


def read_json_rows(path: Path, wanted: Sequence[str]) -> list[Row]:
    """Read the wanted values of a file of JSON lines, an object a line; empty lines count as none.

    Raises:
        UserError: If the file cannot be read, holds no rows, or has a line that is no object with the wanted names.
    """
    rows = []
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                values = _json_object(f"{path}, line {number}", line)
                if missing := [name for name in wanted if name not in values]:
                    found = shown(", ".join(values))
                    raise MissingColumn(f"{path}, line {number} has no {missing[0]!r} but {found}; {AGAIN}")
                rows.append(Row(number, tuple(values[name] for name in wanted)))
    if not rows:
        raise UserError(f"{path} holds no rows; {AGAIN}")
    return rows


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({reason_of(error)}); {AGAIN}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where} is no object with names; {AGAIN}")
    return values
