"""Tables and messages on the terminal and in logs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

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


def show_table(table: Table) -> None:
    """Print a table; if the output is not a terminal, such as a log, it is as wide as its cells need, so none is cut.

    Cells are plain text: brackets in them are not markup.
    """
    console = Console()
    if not console.is_terminal:
        for column in table.columns:  # plain cells measure at once what rich takes a second for, of 2,000 rows
            cells = [column.header, *column.cells]
            if all(isinstance(cell, str) and cell.isprintable() for cell in cells):
                column.width = min(max(map(cell_len, cells)), WIDEST)
        room = console.options.update(max_width=WIDEST)
        console = Console(width=console.measure(table, options=room).maximum)
    console.print(table, markup=False)


def tell(message: str) -> None:
    """Print a message on its own line on stderr, after closing the progress bars there."""
    bars = list(sys.modules["tqdm.std"].tqdm._instances) if "tqdm.std" in sys.modules else []
    for bar in bars:
        bar.leave = True  # a bar that is left ends its line
        bar.close()
    print(" ".join(message.splitlines()), file=sys.stderr, flush=True)
