"""The list of a sweep's runs with their times, estimated."""

from __future__ import annotations

import time

from rich.table import Table
from tqdm import tqdm

from capaboost.sweeps.display import duration
from capaboost.sweeps.estimate import Estimator, measured_speed
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from capaboost.sweeps.runs import Run, final_runs, groups
from capaboost.sweeps.sweep_file import SweepFile, combinations
from capaboost_core.console import show_table


def list_runs(sweep: SweepFile, folder: SweepFolder, shard: tuple[int, int], tera: float | None) -> None:
    """Print every run, and the total.

    Args:
        sweep: What is to be run.
        folder: Where finished runs may be.
        shard: The part that is meant.
        tera: 10^12 multiply-adds a second; None measures this device.

    Raises:
        UserError: If a run's settings are wrong.
    """
    runs = all_runs(sweep, folder, shard)
    speed = tera * 1e12 if tera else measured_speed()
    estimator = Estimator(folder, speed, runs)
    table = Table("run", "epochs", "10^12 multiply-adds", "time", "state")
    for run in tqdm(runs, "counting", leave=False, disable=None):
        settings, work = estimator.settings_of(run), estimator.work(run)
        table.add_row(run.name, str(settings.train.epochs), f"{work / 1e12:,.1f}", duration(estimator.seconds(run)),
                      folder.state(run))  # fmt: skip
    show_table(table)
    total = sum(estimator.seconds(run) for run in runs)
    open_time = sum(estimator.seconds(run) for run in runs if folder.is_open(run))
    basis = "by finished runs" if estimator.speeds else f"at {speed / 1e12:.2g} x 10^12 multiply-adds a second"
    more = 0 if sweep.tune else plan_of(sweep, folder, shard).undecided
    around = f"; then at most {more} at the best of each map" if more else ""
    total, left = duration(total), duration(open_time)
    start = duration(time.process_time())  # of this command, which imports and builds the same
    print(f"{len(runs)} runs, {total} one after another, of which {left} are left ({basis}){around}; {start} to start")


def all_runs(sweep: SweepFile, folder: SweepFolder, shard: tuple[int, int]) -> list[Run]:
    """Every run that there will be, as far as no grid widens; what tuning still has to choose stands at its first
    value.
    """
    plan, (part, parts) = plan_of(sweep, folder, shard), shard
    known = {run.name for run in plan.runs}
    if sweep.tune is None:
        return plan.runs
    first = combinations(sweep.tune.grid)[0]
    later = [run for group in groups(sweep)[part - 1 :: parts] for run in final_runs(sweep, group, first)]
    return plan.runs + [run for run in later if run.name not in known]
