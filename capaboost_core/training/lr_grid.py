"""The learning rate from a grid: a run for each rate, of which the selection split keeps the best."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from capaboost_core.errors import DivergedError, UserError
from capaboost_core.training.checkpoint import RESULT, check_folder
from capaboost_core.training.experiment import Prepare, Run, run_experiment
from capaboost_core.training.results import write_result


def run_grid(run: Run, rates: list[float], folder: Path, resume: bool, prepare: Prepare) -> dict[str, Any]:
    """Run each rate in `folder/lr-<rate>`; the folder's own result is the best run's.

    Args:
        run: All settings; `train.lr` is replaced.
        rates: What to try; of equals the first wins.
        folder: Where the runs live.
        resume: Go on where an interrupted grid stopped.
        prepare: Makes model and task, as for `run_experiment`.

    Returns:
        The best run's result; its `lr_grid` has the value by which each rate was judged, None for a
        rate at which training diverged. Empty in all processes but the first.

    Raises:
        UserError: If the run selects nothing, a folder is taken, every rate diverges, or a run fails.
    """
    folders = {rate: folder / f"lr-{rate:g}" for rate in rates}
    runs = {rate: dataclasses.replace(run, train=run.train.replace(lr=rate)) for rate in rates}
    _check(run, folder, list(folders.values()), resume)
    results: dict[float, dict[str, Any]] = {}
    for rate, place in folders.items():
        try:
            results[rate] = run_experiment(runs[rate], place, resume, prepare)
        except DivergedError as error:
            print(f"train.lr={rate:g} is left out: {error}")
    if not results:
        raise UserError(f"training diverged at every rate of the grid; give lower ones than {min(rates):g}")
    if not all(results.values()):
        return {}
    judged = {rate: result["metrics"][result["selected_by"]] for rate, result in results.items()}
    best = max(judged, key=judged.__getitem__)
    chosen = results[best] | {"lr_grid": {f"{rate:g}": judged.get(rate) for rate in rates}}
    write_result(folder, chosen)
    return chosen


def parse_rates(text: str) -> list[float]:
    """`1e-4,3e-4` -> [1e-4, 3e-4].

    Raises:
        UserError: If a part is no number above 0.
    """
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"--lr-grid is {text!r}; type numbers above 0 with commas between, such as 1e-4,5e-4,1e-3")
    return list(dict.fromkeys(rates))


def _check(run: Run, folder: Path, places: list[Path], resume: bool) -> None:
    if run.data.protocol != run.selecting:
        raise UserError(
            f"--lr-grid needs rows to select on, which protocol {run.data.protocol} does not have; "
            f"pass --protocol {run.selecting}"
        )
    if (folder / RESULT).exists() and not resume:
        raise UserError(f"{folder} holds a result already; pass --resume or another --output-dir")
    for place in places:
        check_folder(place, resume)
