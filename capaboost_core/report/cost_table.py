"""Tables on the terminal, and the same as JSON, CSV and Markdown files."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from capaboost_core.console import show_table
from capaboost_core.files import write_atomically
from capaboost_core.markdown import markdown_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """One table as a reader sees it: a title, column names, and a line of texts for each row."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def show(facts: dict[str, str], sheets: list[Sheet]) -> None:
    """Print tables, then facts."""
    for sheet in sheets:
        table = Table(title=sheet.title, title_justify="left")
        for index, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if index and _numeric(sheet, index) else "left", overflow="fold")
        for line in sheet.lines:
            table.add_row(*line)
        show_table(table)
    for name, fact in facts.items():
        print(f"{name}: {fact}")


def write_files(stem: Path, record: dict[str, Any], facts: dict[str, str], sheets: list[Sheet]) -> list[Path]:
    """Write STEM.json (the whole record), STEM.csv (its rows) and STEM.md (tables and facts).

    Each file is written atomically.
    """
    texts = {".json": json.dumps(record, indent=2) + "\n", ".csv": to_csv(record["rows"])}
    texts[".md"] = to_markdown(facts, sheets)
    paths = [stem.with_name(stem.name + ending) for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, lambda file, text=text: file.write(text.encode()))
    return paths


def to_csv(rows: list[Row]) -> str:
    """Raw numbers, one row a line; a value that is a dict is left to the JSON file."""
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_markdown(facts: dict[str, str], sheets: list[Sheet]) -> str:
    parts = []
    for sheet in sheets:
        parts.append(f"### {sheet.title}\n\n{markdown_table(sheet.columns, sheet.lines)}")
    parts.append("".join(f"- {name}: {fact}\n" for name, fact in facts.items()))
    return "\n".join(parts)


def bytes_text(size: int | None) -> str:
    """3,145,728 -> `3.00 MiB`."""
    if size is None:
        return "not measured"
    for unit in ("B", "KiB", "MiB"):
        if size < 1024 or unit == "MiB":
            return f"{size:,} B" if unit == "B" else f"{size:,.2f} {unit}"
        size /= 1024
    raise AssertionError


def occurrences(operators: dict[str, dict[str, int]]) -> str:
    """Names with the smallest and the largest number over the methods: `add 36 to 72, gelu 12`, or `none`."""
    names = sorted({name for counts in operators.values() for name in counts})
    texts = []
    for name in names:
        numbers = [counts.get(name, 0) for counts in operators.values()]
        few, many = min(numbers), max(numbers)
        texts.append(f"{name.removeprefix('aten::')} {many if few == many else f'{few} to {many}'}")
    return ", ".join(texts) or "none"


def _numeric(sheet: Sheet, index: int) -> bool:
    return all(line[index][:1].isdigit() or line[index][:1] in "-+" for line in sheet.lines)
