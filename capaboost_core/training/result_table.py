"""The table that a command prints of its results."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from capaboost_core.console import show_table

COLUMNS = {
    "task": "task",
    "model": "model",
    "method": "method",
    "protocol": "protocol",
    "value": "value",
    "trainable_parameters": "trainable",
    "percent_trainable": "% trainable",
    "wall_seconds": "seconds",
}


def print_table(results: list[dict[str, Any]]) -> None:
    """Show results, one a row."""
    table = Table()
    for title in COLUMNS.values():
        table.add_column(title, overflow="fold")
    for result in results:
        table.add_row(*(_cell(result, name) for name in COLUMNS))
    show_table(table)


def _cell(result: dict[str, Any], name: str) -> str:
    value = result[name]
    if name == "value":
        return f"{result['metric']} {'undefined' if value is None else f'{value:.2f}'}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)
