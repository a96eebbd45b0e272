"""A sweep from its file to its end: everything is checked before the first run starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from tqdm import tqdm

from capaboost.sweeps.claims import folder_mutex
from capaboost.sweeps.display import Display, Progress, all_runs, progress_of
from capaboost.sweeps.estimate import Estimator, measured_speed
from capaboost.sweeps.folder import CLAIMS, FAILURE, WAITING, SweepFolder
from capaboost.sweeps.plan import Plan, plan_of
from capaboost.sweeps.runs import Run
from capaboost.sweeps.sweep_file import SweepFile, check_inputs
from capaboost.training.checkpoint import differences
from capaboost.training.result import write_result
from capaboost.training.run_folder import check_folder
from capaboost.training.settings import to_dict
from capaboost_core.errors import UserError


class Engine(Protocol):
    """Where runs are done."""

    def run(self, folder: SweepFolder, shard: tuple[int, int], watch: Callable[[], None]) -> None: ...


def drive(
    name: str, sweep: SweepFile, folder: SweepFolder, shard: tuple[int, int], engine: Engine, retry: bool
) -> None:
    """Run what is open, and say what failed.

    Raises:
        UserError: If a setting is wrong, the folder holds other runs, or in the end some runs failed.
    """
    runs = all_runs(sweep, folder, shard)
    estimator = Estimator(folder, measured_speed(), runs)
    check_all(folder, runs, estimator)
    if retry:
        folder.forget_failures(runs)
    folder.write_sweep(sweep)

    def read() -> tuple[Plan, Progress]:
        plan = plan_of(sweep, folder, shard)
        note_tuning(folder, plan)
        estimator.measure()
        return plan, progress_of(folder, plan, estimator)

    with Display(name, folder, read) as display:
        engine.run(folder, shard, display.watch)
    report_end(folder, read()[0])


def check_all(folder: SweepFolder, runs: list[Run], estimator: Estimator) -> None:
    """Refuse wrong settings, inputs that are missing, and a folder whose finished runs had other settings.

    Raises:
        UserError: It names the run.
    """
    check_folder(folder.path, resume=True)
    claims = folder.path / CLAIMS
    if os.path.lexists(claims) and not claims.is_dir():
        raise UserError(f"{claims} must be a folder, but is none; move it away, or choose another --output-dir")
    for run in tqdm(runs, "checking", leave=False, disable=None):
        settings = estimator.settings_of(run)
        check_folder(folder.place(run), resume=True)
        if not folder.is_done(run):
            check_inputs(settings)
            continue
        there = folder.result(run)["config"]
        unequal = [text for text in differences(there, to_dict(settings)) if not _is_precision(text)]
        if unequal:
            raise UserError(
                f"{folder.place(run)} was run with other settings ({unequal[0]}); choose another --output-dir"
            )


def note_tuning(folder: SweepFolder, plan: Plan) -> None:
    """What was tuned joins the results of the runs that have it."""
    for run in plan.runs:
        tuned = plan.tuned.get(run.group)
        if tuned is None or run.tuning or not folder.is_done(run):
            continue
        result = folder.result(run)
        if result.get("tuning") != tuned.to_dict():
            with folder_mutex(folder.path / CLAIMS):  # another sweep in this folder notes the same
                write_result(folder.place(run), result | {"tuning": tuned.to_dict()})


def report_end(folder: SweepFolder, plan: Plan) -> None:
    """Say where tables come from, which grids were too narrow, and what failed.

    Raises:
        UserError: If a run failed, or waits for another engine.
    """
    for group, tuned in plan.tuned.items():
        if tuned.at_edge:
            name = "/".join(filter(None, group))
            best = ", ".join(tuned.at_edge)
            print(f"{name}: the best of {best} lies at an end of its grid; raise tune.widen or trials")
    for line in unequal_trials(plan):
        print(line)
    failed = [run for run in plan.runs if folder.state(run) == FAILURE]
    bad = [run for run in failed if folder.failure(run)["kind"] != "diverged" or not run.tuning]
    waiting = [run for run in plan.runs if folder.state(run) == WAITING]
    print(f"results: {folder.path}; capaboost tables {folder.path} makes the tables")
    if bad:
        first = f"{bad[0].name}: {folder.failure(bad[0])['error']}"
        raise UserError(f"{len(bad)} of {len(plan.runs)} runs failed, first {first}; --retry runs them again")
    if waiting or plan.undecided:
        raise UserError(f"{len(waiting) + plan.undecided} runs are left; the same command goes on")


def unequal_trials(plan: Plan) -> list[str]:
    """A line for each task whose methods were tuned by more trials than others, as where a grid was widened."""
    trials: dict[str, dict[str, int]] = {}
    for (task, *names), tuned in plan.tuned.items():
        trials.setdefault(task, {})["/".join(filter(None, names))] = len(tuned.grid)
    return [
        f"{task}: tuned by unequal trials, {', '.join(f'{name} {count}' for name, count in counts.items())}; "
        "tune.trials makes them equal"
        for task, counts in trials.items()
        if len(set(counts.values())) > 1
    ]


def _is_precision(text: str) -> bool:
    return text.startswith("train.mixed_precision:")
