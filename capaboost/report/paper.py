"""The paper's own tables (arXiv 2407.01320) as data, compared with what is counted here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from capaboost.report.cost import ModelFactory, settings_of
from capaboost.report.cost_report import ReportTable
from capaboost.report.flops import count_added
from capaboost_core.errors import UserError
from capaboost_core.injection import ParameterCounts, parameter_counts
from capaboost_core.methods import PRESETS, Method

TOLERANCE = 0.01  # percentage points, factors or millions: one unit of the last printed digit
QUANTITIES = {
    "percent_trainable": ("% FT Params", "%"),
    "flops": ("FLOPs", "x"),
    "parameters_relative": ("#Param", "x"),
    "parameters_millions": ("parameters", "M"),
}
FLOPS = "effective multiply-adds added to a forward pass, over those of the table's LoRA; 128 tokens"
COLUMNS = ("source", "method", "settings", "quantity", "paper", "here", "difference", "note")


class PaperCounter:
    """Counts what the tables ask of a model and an adaptation, each only once.

    Args:
        subject_of: Gives a base model by its name.
    """

    def __init__(self, subject_of: Callable[[str], ModelFactory]):
        self.subject, self.counts, self.added = cache(subject_of), cache(self._counts), cache(self._added)

    def _counts(self, model: str, config: Method) -> ParameterCounts:
        subject = self.subject(model)
        return parameter_counts(subject.inject(subject.build(), config))

    def _added(self, model: str, config: Method) -> int:
        subject = self.subject(model)
        return count_added(subject.inject(subject.build(), config), subject.inputs)

    def quantity(self, name: str, model: str, ours: Any, reference: Any) -> float:
        """A column's value for one adaptation, relative to another where the column is so."""
        if name == "flops":
            return self.added(model, ours) / self.added(model, reference)
        counts = self.counts(model, ours)
        if name == "parameters_relative":
            return counts.trainable / self.counts(model, reference).trainable
        return counts.percent if name == "percent_trainable" else counts.trainable / 1e6


@dataclass(frozen=True)
class Comparison:
    """One printed number and the one that is counted here.

    `why` explains a difference over `TOLERANCE`; `reading` says whose the settings are, where the paper leaves more
    than one open and these are not its default here.
    """

    source: str
    model: str
    method: str
    preset: str
    settings: dict[str, Any]
    quantity: str
    paper: float
    here: float
    why: str | None
    reading: str | None = None

    @property
    def differs(self) -> bool:
        return self.reading is None and round(abs(self.here - self.paper), 9) > TOLERANCE

    def cells(self, reasons: list[str]) -> tuple[str, ...]:
        """The row as a reader sees it, in the order of COLUMNS, with the number of its reason."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        title, unit = QUANTITIES[self.quantity]
        numbers = (f"{self.paper:g} {unit}", f"{self.here:.3f} {unit}", f"{round(self.here - self.paper, 3) + 0:+.3f}")
        reason = self.why or self.reading
        note = str(reasons.index(reason) + 1) if reason else ""
        return (_short(self.source), self.method, settings, title, *numbers, note)


def read_tables(folder: Path) -> list[dict[str, Any]]:
    """The tables, in the order of their numbers.

    Raises:
        UserError: If the folder holds none.
    """
    paths = sorted(folder.glob("table-*.json"))
    if not paths:
        raise UserError(f"{folder} holds no table-*.json; run this from a checkout of the project")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def compare(tables: list[dict[str, Any]], counter: PaperCounter) -> Iterator[Comparison]:
    """Every printed quantity of every row that can be built here, beside what is counted for it."""
    for table in tables:
        reference = _config(table["reference"]) if "reference" in table else None
        for row in table["rows"]:
            for quantity in QUANTITIES:
                if row.get("build", {}).get("preset") in PRESETS and row.get(quantity) is not None:
                    for reading in ({}, *row.get("readings", ())):
                        yield _comparison(table, row, quantity, counter, reference, reading)


def facts(tables: list[dict[str, Any]], comparisons: list[Comparison]) -> dict[str, str]:
    """What a reader must know: how many numbers differ and why, what the builds are, which rows have none."""
    differing = sum(comparison.differs for comparison in comparisons)
    compared = sum(comparison.reading is None for comparison in comparisons)
    apart = {f"{row['name']}, {row['apart']}" for table in tables for row in table["rows"] if "apart" in row}
    return {
        "paper": f"arXiv 2407.01320; {differing} of {compared} numbers differ by more than {TOLERANCE}"
        f"{'; a note says why' if differing else ''}",
        **{f"note {number}": reason for number, reason in enumerate(_reasons(comparisons), 1)},
        **({"FLOPs": FLOPS} if any(comparison.quantity == "flops" for comparison in comparisons) else {}),
        **{_short(table["source"]): " ".join(table["notes"]) for table in tables if "notes" in table},
        **{f"slips of {_short(table['source'])}": slips for table in tables if (slips := _slips(table))},
        "not compared": "; ".join(sorted(apart)) or "none",
    }


def sheets(comparisons: list[Comparison]) -> list[ReportTable]:
    """One sheet a model."""
    reasons = _reasons(comparisons)
    models = dict.fromkeys(comparison.model for comparison in comparisons)
    lines = {model: tuple(c.cells(reasons) for c in comparisons if c.model == model) for model in models}
    return [ReportTable(f"The paper's numbers for {model}", COLUMNS, lines[model]) for model in models]


def _reasons(comparisons: list[Comparison]) -> list[str]:
    return list(dict.fromkeys(reason for c in comparisons if (reason := c.why or c.reading)))


def _slips(table: dict[str, Any]) -> str:
    """What the table itself has wrong, cell by cell."""
    return "; ".join(
        f"{row['name']}, {QUANTITIES.get(cell, (cell,))[0]}: {text}"
        for row in table["rows"]
        for cell, text in row.get("slips", {}).items()
    )


def _config(build: dict[str, Any]) -> Method:
    return settings_of(build["preset"], {name: value for name, value in build.items() if name != "preset"})


def _comparison(
    table: dict[str, Any],
    row: dict[str, Any],
    quantity: str,
    counter: PaperCounter,
    reference: Method | None,
    reading: dict[str, Any],
) -> Comparison:
    build = row["build"] | reading.get("build", {})
    here = counter.quantity(quantity, table["model"], _config(build), reference)
    why = None if reading else row.get("why", {}).get(quantity)
    what = (table["source"], table["model"], row["name"], build.pop("preset"), build)
    return Comparison(*what, quantity, row[quantity], here, why, reading.get("says"))


def _short(source: str) -> str:
    return source.rpartition(", ")[2]
