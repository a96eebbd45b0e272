"""Tables and messages on the terminal and in logs."""

from __future__ import annotations

import sys

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

WIDEST = 400  # columns


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
