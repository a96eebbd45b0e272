"""What a sweep shows while it runs: one live screen on a terminal, and elsewhere a line for each run that ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from capaboost.sweeps.folder import DONE, FAILURE, SweepFolder
from capaboost.sweeps.plan import Plan
from capaboost.sweeps.progress import Progress
from capaboost.sweeps.runs import Run

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
        self.last, self.told = -READ_SECONDS, set()

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        else:  # what ended before is no news
            plan, _ = self.read()
            self.told = {run.name for run in plan.runs if not self.folder.is_open(run)}
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
            if run.name not in self.told and not self.folder.is_open(run):
                self.told.add(run.name)
                print(line(self.folder, run, len(self.told), progress), flush=True)


def screen(name: str, progress: Progress) -> RenderableType:
    """The whole sweep on one screen."""
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
        told = f"{result['metric']} {value} in {duration(result['wall_seconds'])}"
    else:
        told = f"failed: {folder.failure(run)['error']}"
    return f"[{count}/{progress.total}] {run.name}: {told}; {left(progress)}"


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
