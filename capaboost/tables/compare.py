"""Methods beside each other: means over seeds, and paired differences to one of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from capaboost.tables.groups import Group, Task, group_runs, label_groups, natural_order
from capaboost.tables.statistics import (
    Difference,
    Spread,
    Verdict,
    judge,
    paired,
    paired_difference,
    pooled_deviation,
    spread_of,
)
from capaboost.training.run_folder import worth
from capaboost_core import UserError
from capaboost_core.errors import shown

MAX_COLUMNS = 12  # methods, more than which a page does not hold beside each other
MIN_AGREEMENT = 0.5  # least rank correlation of two tasks whose means make one order


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Attributes:
        missing: Seeds that another method has on this task.
        difference: To the reference, over the seeds of both; None for the reference, and without such a seed.
        verdict: Of two pairs or more, with all differences of the task as its family.
    """

    group: Group
    spread: Spread
    missing: list[int]
    difference: Difference | None
    verdict: Verdict | None
    is_best: bool

    @property
    def trainable(self) -> int:
        """Trainable parameters without the head; masks of other seeds keep a few more or less."""
        return round(spread_of([run["trainable_parameters"] for run in self.group.runs]).mean)


@dataclass(frozen=True)
class Comparison:
    """A table of tasks and methods.

    Attributes:
        reference: The method to which there are differences, if any.
        methods: Their labels, the reference first; of more than MAX_COLUMNS, the best first.
        agreement: Spearman's correlation of the order of methods, for each two tasks that share more than MAX_COLUMNS.
        cells: By task and method; there is none where a method did not run.
    """

    reference: str | None
    tasks: list[Task]
    methods: list[str]
    cells: dict[tuple[Task, str], Cell]
    agreement: dict[tuple[Task, Task], float]

    @property
    def is_ranking(self) -> bool:
        """Whether methods are the lines of the table, the best first, and not its columns."""
        return len(self.methods) > MAX_COLUMNS

    def row(self, task: Task) -> dict[str, Cell]:
        return {method: self.cells[task, method] for method in self.methods if (task, method) in self.cells}

    def seeds(self, task: Task) -> list[int]:
        """Every seed that some method has on the task."""
        return sorted({seed for cell in self.row(task).values() for seed in by_seed(cell.group)})


def compare(results: dict[Path, dict[str, Any]], reference: str | None) -> Comparison:
    """Put the methods beside each other.

    Args:
        results: By the file that holds it.
        reference: The label of the method that the others are compared with, if they are.

    Raises:
        UserError: If no column has this label, or two files are the same run.
    """
    groups = group_runs(results)
    labels = label_groups(groups)
    methods = sorted(set(labels.values()), key=lambda label: (label != reference, natural_order(label)))
    if reference not in (None, *methods):
        raise UserError(f"--compare is {shown(reference)}; give one of: {'; '.join(methods)}")
    rows = _by_task(labels)
    cells = {(task, label): cell for task, row in rows.items() for label, cell in _cells(row, reference).items()}
    agreement = _agreement(cells)
    ranked = _ranked(methods, cells, agreement) if len(methods) > MAX_COLUMNS else methods
    return Comparison(reference, sorted(rows), ranked, cells, agreement)


def _agreement(cells: dict[tuple[Task, str], Cell]) -> dict[tuple[Task, Task], float]:
    from scipy.stats import spearmanr

    means: dict[Task, dict[str, float]] = defaultdict(dict)
    for (task, method), cell in cells.items():
        means[task][method] = worth(task.metric, cell.spread.mean)
    found = {}
    for pair in combinations(sorted(means), 2):
        both = sorted(means[pair[0]].keys() & means[pair[1]].keys())
        first, second = ([means[task][method] for method in both] for task in pair)
        if len(both) > MAX_COLUMNS and len(set(first)) > 1 and len(set(second)) > 1:
            correlation: Any = spearmanr(first, second)
            found[pair] = float(correlation.statistic)
    return found


def ordering_task(cells: dict[tuple[Task, str], Cell], agreement: dict[tuple[Task, Task], float]) -> Task | None:
    """The task that orders the methods, that of most runs, where tasks do not agree on an order; else None."""
    if all(correlation >= MIN_AGREEMENT for correlation in agreement.values()):
        return None
    runs = Counter({task: 0 for task, _ in cells})
    for (task, _), cell in cells.items():
        runs[task] += len(cell.group.runs)
    return max(sorted(runs), key=runs.__getitem__)


def _ranked(
    methods: list[str], cells: dict[tuple[Task, str], Cell], agreement: dict[tuple[Task, Task], float]
) -> list[str]:
    """By the mean over tasks, or by one task; a method that lacks a task comes after those that have more."""
    of_task, means, count = ordering_task(cells, agreement), defaultdict(list), Counter()
    for (task, method), cell in cells.items():
        count[method] += 1
        if of_task in (None, task):
            means[method].append(worth(task.metric, cell.spread.mean))
    return sorted(methods, key=lambda of: (count[of], bool(means[of]), fmean(means[of] or [0.0])), reverse=True)


def _by_task(labels: dict[Group, str]) -> dict[Task, dict[str, Group]]:
    rows: dict[Task, dict[str, Group]] = defaultdict(dict)
    for group, label in labels.items():
        other = rows[group.task].get(label)
        if other and other.data != group.data:
            raise UserError(
                f"runs of {label} on {group.task.task} have seen different training data ({other.data} and "
                f"{group.data} as data_hash in their result.json); compare the folders of one of them"
            )
        if other:
            raise UserError(
                f"two groups of runs are called {label} on {group.task.task}; compare one of them at a time"
            )
        rows[group.task][label] = group
    return rows


def by_seed(group: Group) -> dict[int, float]:
    """The value for each seed: the mean, where runs of one seed have several draws of masks."""
    values = defaultdict(list)
    for run, value in zip(group.runs, group.values, strict=True):
        values[run["seed"]].append(value)
    return {seed: spread_of(of_seed).mean for seed, of_seed in values.items()}


def _cells(row: dict[str, Group], reference: str | None) -> dict[str, Cell]:
    values = {label: by_seed(group) for label, group in row.items()}
    spreads = {label: spread_of(of_label.values()) for label, of_label in values.items()}
    seeds = sorted({seed for of_label in values.values() for seed in of_label})
    best = max(worth(row[label].task.metric, spread.mean) for label, spread in spreads.items())
    of_reference = values.get(reference, {}) if reference else {}
    pairs = {label: paired(of_label, of_reference) for label, of_label in values.items() if label != reference}
    verdicts = judge(pairs, pooled_deviation(values))
    return {
        label: Cell(
            group=row[label],
            spread=spread,
            missing=[seed for seed in seeds if seed not in values[label]],
            difference=None if label == reference else paired_difference(values[label], of_reference),
            verdict=verdicts.get(label),
            is_best=worth(row[label].task.metric, spread.mean) == best,
        )
        for label, spread in spreads.items()
    }
