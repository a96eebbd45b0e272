"""How far a sweep is: its progress read from the folder, the live screen, and the list of a dry run."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from capaboost.console import show_table
from capaboost.sweeps.estimate import Estimator, measured_speed
from capaboost.sweeps.folder import DONE, FAILURE, RUNNING, WAITING, SweepFolder
from capaboost.sweeps.plan import Plan, plan_of
from capaboost.sweeps.runs import Run, final_runs, groups
from capaboost.sweeps.sweep_file import SweepFile, combinations
from capaboost.training.run_folder import worth


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
        if found and (task not in best or worth(found.metric, found.mean) > worth(found.metric, best[task].mean)):
            best[task] = found
    return list(best.values())


READ_SECONDS = 2.0  # between two readings of the folder


class Display:
    """Shows a sweep until its block ends; `watch` is called as often as one likes.

    Args:
        name: Of the sweep.
        folder: Where it lives.
        read: The plan and the progress of this moment.
    """

    def __init__(self, name: str, folder: SweepFolder, read: Callable[[], tuple[Plan, Progress]]):
        self.name, self.folder, self.read = name, folder, read
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.last, self.shown = -READ_SECONDS, set()

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        else:  # what ended before is no news
            plan, _ = self.read()
            self.shown = {run.name for run in plan.runs if not self.folder.is_open(run)}
        return self

    def __exit__(self, *_: object) -> None:
        self._show()
        if self.live:
            self.live.stop()

    def watch(self) -> None:
        if time.monotonic() - self.last >= READ_SECONDS:
            self._show()
            self.last = time.monotonic()

    def _show(self) -> None:
        plan, progress = self.read()
        if self.live:
            self.live.update(screen(self.name, progress), refresh=True)
            return
        for run in plan.runs:
            if run.name not in self.shown and not self.folder.is_open(run):
                self.shown.add(run.name)
                print(line(self.folder, run, len(self.shown), progress), flush=True)


def screen(name: str, progress: Progress) -> RenderableType:
    """The sweep on one screen."""
    failed = f", {progress.states[FAILURE]} failed" if progress.states[FAILURE] else ""
    head = f"{name}: {progress.states[DONE]} of {progress.total} done, {len(progress.running)} running{failed}"
    parts: list[RenderableType] = [
        Text(f"{head}; {left(progress)}", style="bold"),
        Padding(ProgressBar(total=max(progress.total, 1), completed=progress.over, width=60), (0, 0, 1, 0)),
    ]
    if progress.running:
        table = Table("running", "epoch", "left", box=None, header_style="dim")
        for each in progress.running:
            table.add_row(Text(each.run.name), f"{each.epoch}/{each.epochs}", duration(each.seconds_left))
        parts.append(table)
    if progress.best:
        table = Table("task", "best so far", "metric", "mean", "seeds", box=None, header_style="dim")
        for best in progress.best:
            table.add_row(Text(best.task), Text(best.method), best.metric, f"{best.mean:.2f}", str(best.seeds))
        parts.append(table)
    return Group(*parts)


def line(folder: SweepFolder, run: Run, count: int, progress: Progress) -> str:
    """`[3/24] digits/lora/seed42: accuracy 97.32 in 2 min; about 20 min left`."""
    if folder.is_done(run):
        result = folder.result(run)
        value = "undefined" if result["value"] is None else f"{result['value']:.2f}"
        shown = f"{result['metric']} {value} in {duration(result['wall_seconds'])}"
    else:
        shown = f"failed: {folder.failure(run)['error']}"
    return f"[{count}/{progress.total}] {run.name}: {shown}; {left(progress)}"


def left(progress: Progress) -> str:
    """The time that is left if as many runs go on at a time as now."""
    if progress.over == progress.total:
        return "nothing left"
    return f"about {duration(progress.seconds_left / max(1, len(progress.running)))} left"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h` or `2.1 days`."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"


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
    begin = time.process_time()  # of this command, which imports and builds what the sweep does
    total = begin + sum(estimator.seconds(run) for run in runs)
    open_runs = [estimator.seconds(run) for run in runs if folder.is_open(run)]
    open_time = begin + sum(open_runs) if open_runs else 0.0
    basis = "by finished runs" if estimator.speeds else f"at {speed / 1e12:.2g} x 10^12 multiply-adds a second"
    more = 0 if sweep.tune else plan_of(sweep, folder, shard).undecided
    around = f"; then at most {more} at the best of each map" if more else ""
    total, left = duration(total), duration(open_time)
    start = f"; {duration(begin)} of it to start"
    print(f"{len(runs)} runs, {total} one after another, of which {left} are left ({basis}){around}{start}")


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
