"""Tables and messages on the terminal, tables in Markdown, and output paths that are checked before the work."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from tabulate import DataRow, TableFormat, tabulate

from capaboost_core.errors import UserError, shown
from capaboost_core.files import check_target


def _rule(widths: Sequence[int], aligns: Sequence[str]) -> str:
    return f"| {' | '.join('---' for _ in widths)} |"


# GitHub's, without padding, so that a change of one cell changes one line.
_ROW = DataRow("| ", " | ", " |")
_GITHUB = TableFormat(None, _rule, None, None, headerrow=_ROW, datarow=_ROW, padding=0, with_header_hide=None)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line for each row; bars within cells are escaped."""
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    return tabulate(cells, list(titles), _GITHUB, disable_numparse=True, stralign=None) + "\n"


WIDEST = 400  # columns


class Lasting:
    """A stream of messages whose end is not that of the program: once it is full or closed, the rest is dropped."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        return not self.stream.closed and self.stream.isatty()

    def write(self, text: str) -> int:
        with self._dropped():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropped():
            self.stream.flush()

    @contextlib.contextmanager
    def _dropped(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())  # what is buffered has to go somewhere at exit


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Within it a standard error that is full or closed stops nothing; Python has None for a stream closed before."""
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(sys.stdout or nowhere))
        stack.enter_context(contextlib.redirect_stderr(Lasting(sys.stderr or nowhere)))
        yield


_answers: ContextVar[TextIO | None] = ContextVar("answers", default=None)  # the standard output outside of `quiet`


class NoTerminal(Lasting):
    """A standard error on which no bar is shown."""

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Within it neither bars nor what is printed are seen, but answers, remarks and messages are.

    Args:
        on: If false, it changes nothing.
    """
    if not on or is_quiet():
        yield
        return
    token = _answers.set(sys.stdout)
    try:
        with contextlib.ExitStack() as stack:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(NoTerminal(sys.stderr)))
            yield
    finally:
        _answers.reset(token)


def is_quiet() -> bool:
    return _answers.get() is not None


def answer(text: str) -> None:
    """Print what was asked for, within `quiet` too."""
    print(text, file=_answers.get())


def remark(message: str) -> None:
    """Print a line that changes what a result means; within `quiet` on the standard error."""
    tell(message) if is_quiet() else print(message)


def note(message: str) -> None:
    """`tell`, but not within `quiet`."""
    if not is_quiet():
        tell(message)


def show_table(table: Table) -> None:
    """Print a table; if the output is not a terminal, such as a log, it is as wide as its cells need, so none is cut.

    On a terminal that is too narrow, a single row is shown as a list, and of more rows what all have in common stands
    below. Cells are plain text: brackets in them are not markup.
    """
    console = Console()
    if console.is_terminal and _width(console, table) > console.width:
        return _show_narrow(console, table)
    if not console.is_terminal:
        for column in table.columns:  # plain cells measure at once what rich takes a second for, of 2,000 rows
            cells = [column.header, *column.cells]
            texts = [cell for cell in cells if isinstance(cell, str) and cell.isprintable()]
            if len(texts) == len(cells):
                column.width = min(max(map(cell_len, texts)), WIDEST)
        console = Console(width=_width(console, table))
    console.print(table, markup=False)


def _width(console: Console, table: Table) -> int:
    """Columns that a table takes where no cell is cut."""
    return console.measure(table, options=console.options.update(max_width=WIDEST)).maximum


def _show_narrow(console: Console, table: Table) -> None:
    columns = [(str(column.header), [str(cell) for cell in column.cells]) for column in table.columns]
    common = {title: cells[0] for title, cells in columns if len(set(cells)) == 1}
    if table.row_count > 1:
        varying = [(title, cells) for title, cells in columns if title not in common]
        left = Table(show_lines=table.show_lines)
        for title, _ in varying:
            left.add_column(title, overflow="fold")
        for row in zip(*(cells for _, cells in varying), strict=True):
            left.add_row(*row)
        console.print(left, markup=False)
        console.print("In all rows:" if common else "", end="\n" if common else "")
    width = max(map(len, common), default=0)
    for title, cell in common.items():
        console.print(f"{title.ljust(width)}  {cell}", markup=False, highlight=False)


def tell(message: str) -> None:
    """Print a message on its own line on stderr, after closing the progress bars there."""
    bars = list(sys.modules["tqdm.std"].tqdm._instances) if "tqdm.std" in sys.modules else []
    for bar in bars:
        bar.leave = True  # a bar that is left ends its line
        bar.close()
    print(" ".join(message.splitlines()), file=sys.stderr, flush=True)


def check_outputs(flag: str, *paths: Path | None) -> None:
    """Try to write next to each path, or in the nearest existing folder above it; no file is left.

    Raises:
        UserError: If a path is a folder or cannot be written; it names the flag.
    """
    for path in paths:
        if path is None:
            continue
        try:
            check_target(path)
            _try_name(path)
            _try_folder(path.parent)
        except (OSError, ValueError) as error:  # the second for a name with a NUL, or none
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{flag} {shown(str(path))} cannot be written ({reason}); give another path") from error


def _try_name(path: Path) -> None:
    """Raise the system's error for a name that is too long, or whose parent is a file."""
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)


def _try_folder(folder: Path) -> None:
    while not os.path.lexists(folder):
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass
