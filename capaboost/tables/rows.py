"""Rows of the result table: runs that differ in nothing but their seeds become one."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from capaboost.tables.read import TEXTS
from capaboost.tables.row_settings import PLACES, differences, settings_of
from capaboost_core import UserError

TITLES = ("task", "model", "method", "settings", "protocol", "value")
TITLES += ("trainable", "% trainable", "epochs", "device", "split")


@dataclass(frozen=True)
class Row:
    """One line of the table; its fields are the columns of the CSV file."""

    task: str
    model: str
    method: str
    settings: str
    protocol: str
    metric: str
    mean: float
    std: float | None
    seeds: int
    trainable_parameters: int
    percent_trainable: float
    epochs: int
    device: str
    split_note: str

    def cells(self) -> tuple[str, ...]:
        """The displayed cells of the row, in the order of TITLES."""
        runs = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        spread = "" if self.std is None else f" ± {self.std:.2g}"
        value = f"{self.metric} {self.mean:.4g}{spread} ({runs})"
        counts = (f"{self.trainable_parameters:,}", f"{self.percent_trainable:.2f}", f"{self.epochs:g}")
        what = (self.task, self.model, self.method, self.settings, self.protocol)
        return (*what, value, *counts, self.device, self.split_note)


def make_rows(results: dict[Path, dict[str, Any]]) -> list[Row]:
    """Group the results by all but their seeds.

    Raises:
        UserError: If two files are the same run, which would count one seed twice.
    """
    groups: dict[str, dict[str, Path]] = {}
    for path, result in results.items():
        runs = groups.setdefault(_fingerprint(result, PLACES), {})
        run = _fingerprint(result, PLACES[1:])
        if run in runs:
            raise UserError(f"{path} and {runs[run]} are the same run with the same seed; delete one")
        runs[run] = path
    grouped = [[results[path] for path in runs.values()] for runs in groups.values()]
    rows = [_row(runs, differences(runs[0], [others[0] for others in grouped])) for runs in grouped]
    return sorted(rows, key=lambda row: (row.task, row.model, row.protocol, row.method, row.percent_trainable))


def _fingerprint(result: dict[str, Any], dropped: tuple[str, ...]) -> str:
    """What makes two runs comparable, as text."""
    shown = (*TEXTS, "trainable_parameters", "epochs", "split_note", "seed", "config")
    return json.dumps(_without({name: result.get(name) for name in shown}, dropped), sort_keys=True)


def _without(value: Any, dropped: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, dropped) for key, inner in value.items() if key not in dropped}
    return value


def _row(runs: list[dict[str, Any]], differing: list[str]) -> Row:
    values = [float(run["value"]) for run in runs]
    first = {name: runs[0].get(name) for name in (field.name for field in fields(Row))}
    std = statistics.stdev(values) if len(values) > 1 else None
    first["settings"] = ", ".join(filter(None, (settings_of(runs[0].get("config", {})), *differing)))
    note = first["split_note"] or ""
    return Row(**first | {"mean": statistics.fmean(values), "std": std, "seeds": len(runs), "split_note": note})
