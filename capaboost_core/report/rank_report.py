"""Reports on ranks: what their JSON files hold, and the tables that a reader sees."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from capaboost_core.files import write_atomically
from capaboost_core.injection import injection_of, parameter_counts
from capaboost_core.methods import Method
from capaboost_core.report.rank import TOLERANCE, model_ranks
from capaboost_core.training.provenance import git_state, library_versions

PAPER_R = (8, 16, 32, 64)
PAPER_RANKS = {1: (8, 16, 32, 64), 2: (16, 32, 64, 128), 4: (32, 64, 128, 256)}
PAPER_FACTORS = {1: (1, 2, 4, 8), 2: (0.75, 1.5, 3, 6), 4: (0.94, 1.9, 3.75, 7.5)}
MEASURES = {"stable rank": "stable_rank", "effective rank": "effective_rank"}
NUMBERS = re.compile(r"\[[\s\d.,eE+-]*\]")


def adapter_record(model: nn.Module) -> dict[str, Any]:
    """Settings, parameter counts and ranks of an adapted model; `paper` where Table 1 has its r and d.

    `parameter_factor` is relative to plain LoRA of r = 8 on the same layers, as in Table 1.

    Raises:
        UserError: If the model has no LoRA increments.
    """
    increments, config = model_ranks(model), injection_of(model).config
    trainable = parameter_counts(model).trainable
    return {
        "r": config.r,
        "num_tied": config.num_tied,
        "density": config.density,
        "mask": config.mask,
        "trainable_parameters": trainable,
        "parameter_factor": trainable / sum(8 * sum(increment.spectrum.shape) for increment in increments),
        "paper": paper_values(config),
        "tolerance": TOLERANCE,
        "increments": [increment.to_dict() for increment in increments],
    }


def paper_values(config: Method) -> dict[str, float] | None:
    """Rank and parameter factor in Table 1 (arXiv 2407.01320): RoBERTa-base of width 768 on CoLA."""
    density = 1.0 if config.num_tied == 1 else 0.5
    known = config.r in PAPER_R and config.num_tied in PAPER_RANKS
    if not known or (config.density, config.mask) != (density, "random"):
        return None
    column = PAPER_R.index(config.r)
    return {
        "rank": PAPER_RANKS[config.num_tied][column],
        "parameter_factor": PAPER_FACTORS[config.num_tied][column],
    }


def write_report(path: Path, plots: Sequence[str], values: dict[str, Any]) -> None:
    """Write a report as JSON, atomically, with what is needed to repeat it and the plots it has data for."""
    report = {
        "plots": list(plots),
        **values,
        "versions": library_versions(),
        "git": git_state(),
        "command": shlex.join(sys.argv),
    }
    text = NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), json.dumps(report, indent=2))
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def increments_table(record: dict[str, Any]) -> Table:
    """One row an increment, and one for all of them."""
    table = Table("layer", "rows", "shape", show_footer=True)
    increments = record["increments"]
    ranks, bounds = (sum(row[name] for row in increments) for name in ("rank", "bound"))
    footers = {"at most": f"{bounds:,}", "rank": f"{ranks:,}"}
    footers |= {title: f"{_mean(record, name):.1f}" for title, name in MEASURES.items()}
    for title, footer in footers.items():
        table.add_column(title, footer, justify="right")
    table.columns[0].footer = f"{len(increments)} increments: sums, means"
    for row in increments:
        rows, shape = (separator.join(map(str, row[name])) for name, separator in (("rows", ":"), ("shape", " x ")))
        measures = (f"{row[name]:.1f}" for name in MEASURES.values())
        table.add_row(row["layer"], rows, shape, str(row["bound"]), str(row["rank"]), *measures)
    return table


def study_table(records: Sequence[dict[str, Any]]) -> Table:
    """The layout of Table 1, with the paper's values in parentheses; measures are means over increments.

    A rank is marked `full` where the width, not d*r, bounds it.
    """
    columns = sorted({record["r"] for record in records})
    table = Table("rank of method", *(f"r = {r}" for r in columns))
    for num_tied in sorted({record["num_tied"] for record in records}):
        by_r = {record["r"]: record for record in records if record["num_tied"] == num_tied}
        name = "LoRA" if num_tied == 1 else f"CapaBoost-LoRA (d = {num_tied})"
        for title, cell in {name: _rank_cell, "  #Param": _factor_cell}.items():
            table.add_row(title, *(cell(by_r[r]) if r in by_r else "" for r in columns))
        for title, measure in MEASURES.items():
            table.add_row(f"  {title}", *(f"{_mean(by_r[r], measure):.1f}" if r in by_r else "" for r in columns))
    return table


def _rank_cell(record: dict[str, Any]) -> str:
    ranks = [row["rank"] for row in record["increments"]]
    low, high = min(ranks), max(ranks)
    rank = str(low) if low == high else f"{low} to {high}"
    full = any(row["bound"] < record["r"] * record["num_tied"] for row in record["increments"])
    paper = f" ({record['paper']['rank']})" if record["paper"] else ""
    return f"{rank}{', full' if full else ''}{paper}"


def _factor_cell(record: dict[str, Any]) -> str:
    paper = f" ({record['paper']['parameter_factor']:g}x)" if record["paper"] else ""
    return f"{record['parameter_factor']:.3g}x{paper}"


def _mean(record: dict[str, Any], name: str) -> float:
    return statistics.fmean(row[name] for row in record["increments"])


def theorem_table(report: dict[str, Any]) -> Table:
    """How often the rank of a sum was min(2r, n)."""
    size, r = report["size"], report["masked_r"]
    table = Table("sum of two", "case", "min(2r, n)", "equal", "rank: draws", title=f"n = {size}")
    for row in report["independent"]:
        table.add_row("independent products", f"r = {row['r']}", *_theorem_cells(row))
    for row in report["masked"]:
        kind = "one mask for both" if row["mask"] == "same" else "a mask for each"
        table.add_row(f"tied factors, {kind}", f"r = {r}, density {row['density']:g}", *_theorem_cells(row))
    return table


def _theorem_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    ranks = ", ".join(f"{rank}: {draws}" for rank, draws in row["ranks"].items())
    return str(row["expected"]), f"{row['equal']} of {row['draws']}", ranks
