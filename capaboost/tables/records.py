"""A comparison as records of raw numbers, one for each task and method."""

from __future__ import annotations

from typing import Any

from capaboost.tables.compare import Cell, Comparison
from capaboost.tables.groups import Task

MEASURED = ("settings", "trainable_parameters", "seeds", "missing_seeds", "mean", "std", "best")
MEASURED += ("difference", "low", "high", "pairs")
JUDGED = ("holm_low", "holm_high", "holm_p", "equivalence_p", "pairs_needed", "pooled", "verdict")


def records_of(table: Comparison) -> list[dict[str, Any]]:
    """What the CSV file holds; a method that did not run on a task has 0 seeds there."""
    groups = [cell.group for cell in table.cells.values()]
    return [
        {**task._asdict(), "method": method, "reference": table.reference}
        | (_measured(cell, groups) if (cell := table.cells.get((task, method))) else _absent(table, task))
        for task in table.tasks
        for method in table.methods
    ]


def _measured(cell: Cell, groups: list) -> dict[str, Any]:
    low, high = (cell.difference and cell.difference.interval) or (None, None)
    values = (
        cell.group.shown_settings(groups),
        cell.trainable,
        cell.spread.count,
        _listed(cell.missing),
        cell.spread.mean,
        cell.spread.std,
        cell.is_best,
        cell.difference and cell.difference.mean,
        low,
        high,
        cell.difference.pairs if cell.difference else None,
    )
    of = cell.verdict
    judged = (*of.interval, of.p, of.p_equivalent, of.needed, of.pooled, str(of)) if of else (None,) * len(JUDGED)
    return dict(zip(MEASURED + JUDGED, (*values, *judged), strict=True))


def _absent(table: Comparison, task: Task) -> dict[str, Any]:
    return dict.fromkeys(MEASURED + JUDGED) | {"seeds": 0, "missing_seeds": _listed(table.seeds(task))}


def _listed(seeds: list[int]) -> str:
    return " ".join(map(str, seeds))
