"""Rows of the result table, one for each group of runs, and the means over VTAB-1k that papers print."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from capaboost.tables.groups import Group, group_runs, unlike
from capaboost.tables.statistics import spread_of

CAPABOOST_TASKS = (  # of arXiv 2407.01320, Table 5
    "cifar", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "eurosat", "resisc45", "clevr_count", "clevr_dist",
    "dmlab", "dsprites_ori", "smallnorb_azi",
)  # fmt: skip


def vtab_means(values: Mapping[str, float]) -> dict[str, float]:
    """The means of a method's value by task, as far as it has their tasks.

    `mean of 19` weighs every task alike, `mean of groups` (natural, specialized, structured) every group; papers call
    both the average, and they lie two points apart. `mean of CapaBoost's 12` is that of its Table 5.
    """
    from capaboost_vision.vtab.tasks import GROUPS

    tasks = [task for group in GROUPS.values() for task in group]
    means = {}
    if values.keys() >= set(tasks):
        groups = [fmean(values[task] for task in group) for group in GROUPS.values()]
        means = {"mean of 19": fmean(values[task] for task in tasks), "mean of groups": fmean(groups)}
    if values.keys() >= set(CAPABOOST_TASKS):
        means["mean of CapaBoost's 12"] = fmean(values[task] for task in CAPABOOST_TASKS)
    return means


def format_means(values: Mapping[str, float]) -> str:
    """`mean of 19 73.23, mean of groups 75.55`; empty without the tasks of a mean."""
    means = vtab_means(values) if len(values) >= len(CAPABOOST_TASKS) else {}
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items())


TITLES = ("task", "model", "method", "settings", "protocol", "value")
TITLES += ("trainable", "% trainable", "epochs", "device", "split")
SEPARATING_FIELDS = ("epochs", "device")


@dataclass(frozen=True)
class Row:
    """One line of the table; its fields are the columns of the CSV file.

    Counts of parameters are means over the runs, as masks of other seeds keep a few entries more or less.
    """

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
    groups = group_runs(results, SEPARATING_FIELDS)
    rows = [_row(group, groups) for group in groups]
    return sorted(rows, key=lambda row: (row.task, row.model, row.protocol, row.method, row.percent_trainable))


def origin_notes(results: dict[Path, dict[str, Any]]) -> list[str]:
    """A line for each part of their origin, such as the commit, in which the runs of a row differ."""
    return unlike(
        ((f"{group.task.task} {group.method}", group.runs) for group in group_runs(results, SEPARATING_FIELDS)), "rows"
    )


def vtab_notes(rows: list[Row]) -> Iterator[str]:
    """A line for each method with the same settings on enough tasks of VTAB-1k, with their means."""
    alike: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        alike[row.method, row.settings, row.model, row.protocol, row.device][row.task] = row.mean
    for (method, settings, model, protocol, _), values in alike.items():
        if means := format_means(values):
            yield f"VTAB-1k, {method} ({settings}; {model}, {protocol}): {means}."


def _row(group: Group, groups: list[Group]) -> Row:
    spread, first = spread_of(group.values), group.runs[0]
    return Row(
        **group.task._asdict(),
        method=group.method,
        settings=group.shown_settings(groups),
        mean=spread.mean,
        std=spread.std,
        seeds=spread.count,
        trainable_parameters=round(spread_of([run["trainable_parameters"] for run in group.runs]).mean),
        percent_trainable=spread_of([run["percent_trainable"] for run in group.runs]).mean,
        **{name: first[name] for name in SEPARATING_FIELDS},
    )
