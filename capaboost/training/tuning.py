"""The learning rate from a grid: a run for each rate, of which the one that is best on the selection split counts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from capaboost.console import remark
from capaboost.training.checkpoint import differences
from capaboost.training.experiment import AnyRun, Prepare, RunSettings, run_experiment
from capaboost.training.optimize import make_accelerator
from capaboost.training.result import read_result, write_result
from capaboost.training.run_folder import RESULT, check_folder, claim, is_finished, worth
from capaboost.training.settings import to_dict
from capaboost_core.errors import DivergedError, UserError


def run_grid(run: AnyRun, rates: list[float], folder: Path, resume: bool, prepare: Prepare[AnyRun]) -> dict[str, Any]:
    """Run each rate in `folder/lr-<rate>`; the folder's own result is the best run's.

    Args:
        run: All settings; `train.lr` is replaced.
        rates: The rates to try; of equal results the first wins.
        folder: Where the runs live.
        resume: Continue where an interrupted grid stopped.
        prepare: Makes model and task, as for `run_experiment`.

    Returns:
        The best run's result; its `lr_grid` has the value by which each rate was judged, None for a
        rate at which training diverged. Empty in all processes but the first.

    Raises:
        UserError: If the run selects nothing, a folder is taken, every rate diverges, or a run fails.
    """
    runs = {rate: dataclasses.replace(run, train=run.train.replace(lr=rate)) for rate in rates}
    _check(run, folder, [rate_folder(folder, rate) for rate in rates], resume)
    accelerator = make_accelerator(run.train, folder)
    if is_finished(folder) and (stored := _stored(run, rates, folder)):
        accelerator.print(f"{folder}: finished already; its result stands")
        return stored if accelerator.is_main_process else {}
    with claim(folder):
        return _try_all(runs, folder, resume, prepare, accelerator)


def _try_all(
    runs: dict[float, AnyRun], folder: Path, resume: bool, prepare: Prepare[AnyRun], accelerator: Accelerator
) -> dict[str, Any]:
    results: dict[float, dict[str, Any]] = {}
    for rate, run in runs.items():
        try:
            results[rate] = run_experiment(run, rate_folder(folder, rate), resume, prepare)
        except DivergedError as error:
            if accelerator.is_main_process:
                remark(f"train.lr={rate:g} is left out: {error}")
    if not results:
        raise UserError(f"training diverged at every rate of the grid; give lower ones than {min(runs):g}")
    if not all(results.values()):
        return {}
    judged = {rate: result["metrics"][result["selected_by"]] for rate, result in results.items()}
    metric = next(iter(results.values()))["selected_by"]
    best = max(judged, key=lambda rate: -math.inf if judged[rate] is None else worth(metric, judged[rate]))
    chosen = results[best] | {"lr_grid": {f"{rate:g}": judged.get(rate) for rate in runs}}
    write_result(folder, chosen)
    return chosen


def rate_folder(folder: Path, rate: float) -> Path:
    """Where a grid has the run of a rate."""
    return folder / f"lr-{rate:g}"


def _stored(run: RunSettings, rates: list[float], folder: Path) -> dict[str, Any] | None:
    """The result of a finished grid over the same rates with the same settings."""
    result = read_result(folder / RESULT)
    differing = differences(result["config"], to_dict(run))
    own = {line.split(":")[0] for line in differing} - {"train.lr", "train.mixed_precision"}
    if own or result.get("lr_grid", {}).keys() != {f"{rate:g}" for rate in rates}:
        return None
    return result


def parse_rates(text: str) -> list[float]:
    """`1e-4,3e-4` -> [1e-4, 3e-4].

    Raises:
        UserError: If a part is not a number above 0.
    """
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"--lr-grid is {text!r}; type numbers above 0 with commas between, such as 1e-4,5e-4,1e-3")
    return list(dict.fromkeys(rates))


def _check(run: RunSettings, folder: Path, of_rates: list[Path], resume: bool) -> None:
    if run.data.protocol != run.selecting:
        raise UserError(
            f"--lr-grid needs rows to select on, which protocol {run.data.protocol} does not have; "
            f"pass --protocol {run.selecting}"
        )
    for path in (folder, *of_rates):
        check_folder(path, resume)
