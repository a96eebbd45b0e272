"""The costs of several methods on one base model relative to plain LoRA, as tables and as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from tqdm import tqdm

from capaboost.console import markdown_table, show_table
from capaboost.report.cost import Cost, ModelFactory, cost_of, settings_of
from capaboost.report.counting import Call, half_of_torch
from capaboost.report.flops import FlopCounts, count_flops
from capaboost_core.errors import UserError
from capaboost_core.files import write_atomically
from capaboost_core.methods import PRESETS, Method

Row = dict[str, Any]


@dataclass(frozen=True)
class ReportTable:
    """One table as a reader sees it: a title, column names, and a line of texts for each row."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def show(facts: dict[str, str], sheets: list[ReportTable]) -> None:
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


def write_files(stem: Path, record: dict[str, Any], facts: dict[str, str], sheets: list[ReportTable]) -> list[Path]:
    """Write STEM.json (the complete record), STEM.csv (its rows) and STEM.md (tables and facts).

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


def to_markdown(facts: dict[str, str], sheets: list[ReportTable]) -> str:
    parts = []
    for sheet in sheets:
        parts.append(f"### {sheet.title}\n\n{markdown_table(sheet.columns, sheet.lines)}")
    parts.append("".join(f"- {name}: {fact}\n" for name, fact in facts.items()))
    return "\n".join(parts)


def bytes_text(size: int | None) -> str:
    """3,145,728 -> `3.00 MiB`."""
    if size is None:
        return "not measured"
    if size < 1024:
        return f"{size:,} B"
    return f"{size / 2**10:,.2f} KiB" if size < 2**20 else f"{size / 2**20:,.2f} MiB"


def occurrences(operators: dict[str, dict[str, int]]) -> str:
    """Names with the smallest and the largest number over the methods: `add 36 to 72, gelu 12`, or `none`."""
    names = sorted({name for counts in operators.values() for name in counts})
    texts = []
    for name in names:
        numbers = [counts.get(name, 0) for counts in operators.values()]
        few, many = min(numbers), max(numbers)
        texts.append(f"{name.removeprefix('aten::')} {many if few == many else f'{few} to {many}'}")
    return ", ".join(texts) or "none"


def _numeric(sheet: ReportTable, index: int) -> bool:
    return all(line[index][:1].isdigit() or line[index][:1] in "-+" for line in sheet.lines)


KINDS = ("effective", "executed")
PASSES = {"added": "added to a forward pass", "forward": "forward pass", "step": "training step"}
SIZES = {
    "trainable_parameters": ("trainable", "{:,}".format),
    "percent_of_model": ("% of model", "{:.3f}".format),
    "percent_of_lora": ("% of LoRA's", "{:,.2f}".format),
    "adapter_file_bytes": ("adapter file", bytes_text),
    "optimizer_state_bytes": ("optimizer state", bytes_text),
    "peak_memory_bytes": ("peak memory", bytes_text),
}
NOTES = {
    "multiply-adds": "one counts as 1; effective has the kept entries of masked weights, executed the dense products "
    "that run; a training step is a forward and a backward pass, without loss and optimizer",
    "bytes": "computed for a safetensors file, and for AdamW's two moments an entry and 4 bytes a tensor",
}
UNKNOWN = "not counted, may hold products"
NEGLIGIBLE = "not counted, no products (times in a step, fewest to most of the methods)"


@dataclass(frozen=True)
class Report:
    """Plain numbers of all methods.

    Attributes:
        base: `total_parameters` and `head_parameters`; of the base model `forward_multiply_adds`, and the same by
            torch's own counter.
        rows: One dict a method.
        left_out: Methods that this model or these settings do not allow, with the reason.
        negligible: Non-matmul operators, with their occurrences in a training step, by method.
        unsupported: The same of operators that are not known to be so.
    """

    base: dict[str, int]
    rows: list[Row]
    left_out: dict[str, str]
    negligible: dict[str, dict[str, int]]
    unsupported: dict[str, dict[str, int]]

    def sheets(self) -> list[ReportTable]:
        """A table of parameters and bytes, and two of multiply-adds."""
        sizes = {name: column for name, column in SIZES.items() if any(name in row for row in self.rows)}
        lines = tuple((row["method"], *(text(row[name]) for name, (_, text) in sizes.items())) for row in self.rows)
        titles = tuple(title for title, _ in sizes.values())
        return [ReportTable("Parameters and bytes", ("method", *titles), lines), *map(self._counts, KINDS)]

    def _counts(self, kind: str) -> ReportTable:
        lines = tuple((row["method"], *(_products(row, f"{name}_{kind}") for name in PASSES)) for row in self.rows)
        return ReportTable(f"Millions of multiply-adds, {kind} (times LoRA's)", ("method", *PASSES.values()), lines)

    def facts(self) -> dict[str, str]:
        """What a reader must know about the numbers."""
        base, ours, of_torch = self.base, *(self.base[f"{who}_multiply_adds"] for who in ("forward", "torch"))
        facts = {
            "base": f"{base['total_parameters']:,} parameters, {ours / 1e6:,.1f} million multiply-adds forward",
            "check": f"half of torch's FlopCounterMode is {of_torch / 1e6:,.1f} million for the base; the count here "
            f"differs by {100 * (ours / of_torch - 1):+.2f} %",
            "head": f"{base['head_parameters']:,} parameters; in the bytes, and in no count or share of parameters",
            **NOTES,
            UNKNOWN: occurrences(self.unsupported),
            NEGLIGIBLE: occurrences(self.negligible),
        }
        return facts | {f"left out, {name}": reason for name, reason in self.left_out.items()}


def choose_methods(text: str) -> list[str]:
    """`all`, or presets with commas between them.

    Raises:
        UserError: If a preset is unknown.
    """
    names = list(PRESETS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PRESETS:
            raise UserError(f"unknown method {name!r}; type all, or some of: {','.join(PRESETS)}")
    return list(dict.fromkeys(names))


def make_report(
    subject: ModelFactory,
    methods: Sequence[str],
    changes: dict[str, Any],
    strict: bool,
    peak_bytes: Callable[[Method], int] | None = None,
    within: Callable[[Method], Method] = lambda config: config,
) -> Report:
    """Count each method.

    Args:
        subject: The base model.
        methods: Presets.
        changes: Settings for all of them.
        strict: Refuse a method that the model or the settings do not allow, instead of leaving it out.
        peak_bytes: Measures the peak memory of a training step; left out, none is given.
        within: Brings a method that has a size setting within a budget.

    Raises:
        UserError: If LoRA, to which all is relative, or a method that is not left out cannot be had.
    """
    lora = cost_of(subject, settings_of("lora", changes))
    base, of_torch = count_flops(subject.build(), subject.inputs), half_of_torch(Call(subject.build(), subject.inputs))
    facts = {"total_parameters": lora.total, "head_parameters": lora.head}
    facts |= {"forward_multiply_adds": base.executed, "torch_multiply_adds": of_torch}
    report = Report(facts, [], {}, {}, {})
    for method in tqdm(methods, desc="methods", leave=False, disable=None):
        try:
            config = settings_of(method, changes)
            config = within(config) if config.budget else config
            counted = cost_of(subject, config)
        except UserError as error:
            if strict:
                raise
            report.left_out[method] = str(error)
            continue
        report.rows.append(_row(method, counted, lora, base))
        report.negligible[method], report.unsupported[method] = counted.negligible, counted.unsupported
        if peak_bytes:
            report.rows[-1]["peak_memory_bytes"] = peak_bytes(config)
    return report


def _row(method: str, ours: Cost, lora: Cost, base: FlopCounts) -> Row:
    row = {
        "method": method,
        "trainable_parameters": ours.trainable,
        "percent_of_model": ours.percent,
        "percent_of_lora": 100 * ours.trainable / lora.trainable,
        "adapter_file_bytes": ours.file_bytes,
        "optimizer_state_bytes": ours.optimizer_bytes,
    }
    for kind in KINDS:
        of_lora, of_base = _passes(lora, kind), getattr(base, kind)
        for name, count in _passes(ours, kind).items():
            skipped = of_base if name == "added" else 0
            row[f"{name}_{kind}_multiply_adds"] = count - skipped
            row[f"{name}_{kind}_times_lora"] = (count - skipped) / (of_lora[name] - skipped)
    return row


def _passes(counted: Cost, kind: str) -> dict[str, int]:
    forward, step = getattr(counted.forward, kind), getattr(counted.step, kind)
    return {"forward": forward, "step": step, "added": forward}


def _products(row: Row, name: str) -> str:
    return f"{row[f'{name}_multiply_adds'] / 1e6:,.1f} ({row[f'{name}_times_lora']:.2f}x)"
