"""How far a sweep is, read from its folder: the same whatever engine works on it, and on which machine."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from capaboost.sweeps.estimate import Estimator
from capaboost.sweeps.folder import DONE, FAILURE, RUNNING, WAITING, SweepFolder
from capaboost.sweeps.plan import Plan
from capaboost.sweeps.runs import Run


@dataclass(frozen=True)
class Running:
    """A run in progress."""

    run: Run
    epoch: int
    epochs: int
    seconds_left: float


@dataclass(frozen=True)
class Best:
    """The best method of a task so far, by its mean over the seeds that are done."""

    task: str
    method: str
    metric: str
    mean: float
    seeds: int


@dataclass(frozen=True)
class Progress:
    """A moment of a sweep.

    Attributes:
        states: Runs by state; `undecided` ones wait for tuning.
        seconds_left: Of all that is left, one after another.
    """

    states: Counter[str]
    undecided: int
    running: list[Running]
    best: list[Best]
    seconds_left: float

    @property
    def total(self) -> int:
        return sum(self.states.values()) + self.undecided

    @property
    def over(self) -> int:
        return self.states[DONE] + self.states[FAILURE]


def progress_of(folder: SweepFolder, plan: Plan, estimator: Estimator) -> Progress:
    """Read the folder."""
    states = [(run, folder.state(run)) for run in plan.runs]
    running = [_running(folder, run, estimator) for run, state in states if state == RUNNING]
    waiting = [run for run, state in states if state == WAITING]
    left = sum(each.seconds_left for each in running) + sum(map(estimator.seconds, waiting))
    if plan.undecided:  # a final run takes about what a tuning run takes
        left += plan.undecided * statistics.fmean(map(estimator.seconds, plan.runs))
    done = [run for run, state in states if state == DONE and not run.tuning]
    return Progress(Counter(state for _, state in states), plan.undecided, running, _best(folder, done), left)


def _running(folder: SweepFolder, run: Run, estimator: Estimator) -> Running:
    epochs, done = estimator.settings_of(run).train.epochs, folder.epochs_done(run)
    return Running(run, done, epochs, estimator.seconds(run) * (1 - min(done / epochs, 1.0)))


def _best(folder: SweepFolder, done: list[Run]) -> list[Best]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in done:
        groups.setdefault(run.group, []).append(folder.result(run))
    best: dict[str, Best] = {}
    for (task, *names), results in groups.items():
        values = [result["value"] for result in results if result["value"] is not None]
        method = " ".join(filter(None, names))
        found = Best(task, method, results[0]["metric"], statistics.fmean(values), len(values)) if values else None
        if found and (task not in best or found.mean > best[task].mean):
            best[task] = found
    return list(best.values())
