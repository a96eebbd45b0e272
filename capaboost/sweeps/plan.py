"""Which runs are open now: tuning first, then the seeds at the best settings, then more seeds around a map's best."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.runs import Run, final_runs, groups, tuning_runs
from capaboost.sweeps.sweep_file import WIDEN, SweepFile, Tune, Values, are_numbers, combinations, label
from capaboost.training.run_folder import worth

Mean = float | None  # None where a run diverged, or its metric is undefined
LOSS = "_loss"  # ends the name of the loss on the rows for selection, for tasks that give it


def have_ended(folder: SweepFolder, runs: list[Run]) -> bool:
    """Whether each is done, or diverged, which is a result as well; any other failure leaves the choice open."""
    return all(folder.is_done(run) or _diverged(folder, run) for run in runs)


def mean_value(folder: SweepFolder, runs: list[Run]) -> Mean:
    values = [folder.result(run)["value"] for run in runs if folder.is_done(run)]
    return statistics.fmean(values) if len(values) == len(runs) and None not in values else None


def mean_loss(folder: SweepFolder, runs: list[Run]) -> Mean:
    """The mean loss on the rows for selection; None where a run has none."""
    metrics = [folder.result(run).get("metrics", {}) if folder.is_done(run) else {} for run in runs]
    losses = [value for each in metrics for name, value in each.items() if name.endswith(LOSS)]
    return statistics.fmean(losses) if len(losses) == len(runs) and None not in losses else None


def metric_of(folder: SweepFolder, runs: list[Run]) -> str:
    """What the runs of a group are judged by; empty if none is done."""
    return next((folder.result(run)["metric"] for run in runs if folder.is_done(run)), "")


def best_of(means: Sequence[Mean], metric: str, losses: Sequence[Mean] | None = None) -> int | None:
    """The index of the best mean, of equal ones that of the lowest loss, then the first; None if there is none."""
    ranks = [
        (-math.inf if mean is None else worth(metric, mean), -math.inf if loss is None else -loss)
        for mean, loss in zip(means, losses or [None] * len(means), strict=True)
    ]
    return None if all(mean is None for mean in means) else max(range(len(means)), key=ranks.__getitem__)


def _diverged(folder: SweepFolder, run: Run) -> bool:
    return folder.is_failed(run) and folder.failure(run)["kind"] == "diverged"


Grid = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Tuned:
    """What tuning chose for a group.

    Attributes:
        values: The best settings.
        grid: The mean value of each combination by its label; None where training diverged.
        at_edge: The settings whose best value still lies at an end of the grid.
        tied: The loss on the rows for selection of each combination that shares the best mean, if several do.
    """

    values: Values
    grid: dict[str, float | None]
    at_edge: tuple[str, ...]
    tied: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        tied = {"tied": self.tied} if self.tied else {}
        return {"chosen": self.values, "grid": self.grid, "at_edge": list(self.at_edge)} | tied


@dataclass(frozen=True)
class Plan:
    """The runs that are known by now, and what was tuned, by group.

    Attributes:
        runs: Of all groups, in order. What tuning still decides is not among them.
        undecided: Final runs that wait for their group's tuning, or at most as many for the best of a map.
    """

    runs: list[Run]
    tuned: dict[tuple[str, ...], Tuned]
    undecided: int


def plan_of(sweep: SweepFile, folder: SweepFolder, shard: tuple[int, int] = (1, 1)) -> Plan:
    """The plan by what the folder holds; of a shard (i, n) every n-th group from the i-th, from 1."""
    part, parts = shard
    mine = groups(sweep)[part - 1 :: parts]
    if sweep.tune is None:
        return _untuned(sweep, folder, mine)
    runs: list[Run] = []
    chosen: dict[tuple[str, ...], Tuned] = {}
    undecided = 0
    for group in mine:
        tuning, tuned = _tune(sweep, sweep.tune, folder, group)
        runs += tuning
        if tuned is None:
            undecided += len(sweep.seeds)
            continue
        chosen[group] = tuned
        runs += final_runs(sweep, group, tuned.values)
    return Plan(runs, chosen, undecided)


def open_runs(folder: SweepFolder, shard: tuple[int, int]) -> list[Run]:
    """What is known by now, and neither done nor failed."""
    return [run for run in plan_of(folder.sweep(), folder, shard).runs if folder.is_open(run)]


def _untuned(sweep: SweepFile, folder: SweepFolder, mine: list[tuple[str, ...]]) -> Plan:
    runs = [run for group in mine for run in final_runs(sweep, group, {})]
    if not sweep.seeds_at_best:
        return Plan(runs, {}, 0)
    undecided, of_shard = 0, {*mine}
    for task, method in dict.fromkeys(group[:2] for group in mine):
        more = runs_around_best(sweep, folder, task, method)
        undecided += most_around_best(sweep) if more is None else 0
        runs += [run for run in more or [] if run.group in of_shard]
    return Plan(runs, {}, undecided)


def _tune(sweep: SweepFile, tune: Tune, folder: SweepFolder, group: tuple[str, ...]) -> tuple[list[Run], Tuned | None]:
    """The group's tuning runs so far, and once all have ended well what is best."""
    grid, widened = dict(tune.grid), 0
    while True:
        runs = tuning_runs(sweep, group, grid)
        if not have_ended(folder, runs):
            return runs, None
        tuned = _best(folder, runs, grid)
        wider = tuned and _wider(tune, grid, tuned, widened)
        if not wider:
            return runs, tuned
        grid, widened = grid | wider, widened + 1


def _wider(tune: Tune, grid: Grid, tuned: Tuned, widened: int) -> Grid:
    """The settings whose values go on, with one more each; empty where the grid is as wide as it may be.

    With `trials` the grid goes on until it has as many values, past the end that is nearer to the best one.
    """
    if tune.trials is None:
        keys = tuned.at_edge if widened < (WIDEN if tune.widen is None else tune.widen) else ()
        return {key: _widen(grid[key], tuned.values[key]) for key in keys}
    ((key, values),) = grid.items()
    ascending = sorted(values)
    upper = 2 * ascending.index(tuned.values[key]) >= len(values)
    return {key: _widen(values, ascending[-1 if upper else 0])} if len(values) < tune.trials else {}


def _best(folder: SweepFolder, runs: list[Run], grid: Grid) -> Tuned | None:
    """The combination with the best mean over the tuning seeds; of equal ones that of the lowest loss."""
    choices = combinations(grid)
    seeds = len(runs) // len(choices)
    of_choice = [runs[i * seeds : (i + 1) * seeds] for i in range(len(choices))]
    means, losses = ([score(folder, runs) for runs in of_choice] for score in (mean_value, mean_loss))
    best = best_of(means, metric_of(folder, runs), losses)
    if best is None:
        return None
    edges = tuple(key for key, values in grid.items() if _is_end(values, choices[best][key]))
    labels = [label(choice) for choice in choices]
    equal = {labels[i]: losses[i] for i in range(len(choices)) if means[i] == means[best]}
    grid_values = dict(zip(labels, means, strict=True))
    return Tuned(choices[best], grid_values, edges, equal if len(equal) > 1 else {})


def _is_end(values: tuple[Any, ...], value: Any) -> bool:
    """Whether a value is the least or the greatest of a grid of numbers, which can then go on."""
    return are_numbers(values) and value in (min(values), max(values))


def _widen(values: tuple[Any, ...], end: Any) -> tuple[Any, ...]:
    """One value more past an end, by the ratio of the two values there; the order stays ascending."""
    ascending = sorted(values)
    near = ascending[1] if end == ascending[0] else ascending[-2]
    beyond = float(f"{end * end / near:.2g}")
    beyond = round(beyond) if all(isinstance(value, int) for value in values) and beyond >= 1 else beyond
    return tuple(sorted({*values, beyond}))


def runs_around_best(sweep: SweepFile, folder: SweepFolder, task: str, method: str) -> list[Run] | None:
    """Runs of `seeds_at_best` at the best combination of `vary`, and at all that are at most one value of each
    setting away from it; None while the map of the other seeds is incomplete.
    """
    cells = [(task, method, varied) for varied in sweep.varied]
    of_cells = [final_runs(sweep, cell, {}) for cell in cells]
    if not all(have_ended(folder, runs) for runs in of_cells):
        return None
    metric = metric_of(folder, [run for runs in of_cells for run in runs])
    best = best_of([mean_value(folder, runs) for runs in of_cells], metric)
    if best is None:
        return []
    indices = list(itertools.product(*(range(len(values)) for values in sweep.vary.values())))
    near = [cell for cell, index in zip(cells, indices, strict=True) if _distance(index, indices[best]) <= 1]
    return [run for cell in near for run in final_runs(sweep, cell, {}, sweep.seeds_at_best)]


def most_around_best(sweep: SweepFile) -> int:
    """How many runs these are at most, of one task and method."""
    return len(sweep.seeds_at_best) * math.prod(min(3, len(values)) for values in sweep.vary.values())


def _distance(index: tuple[int, ...], other: tuple[int, ...]) -> int:
    return max(abs(i - j) for i, j in zip(index, other, strict=True))
