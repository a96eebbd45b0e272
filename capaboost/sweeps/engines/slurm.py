"""Slurm, through submitit: the open runs are an array job."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import open_runs
from capaboost.sweeps.runs import Run
from capaboost.sweeps.work import command_line, work_elsewhere
from capaboost_core.errors import UserError, reason_of
from capaboost_core.extras import need

POLL_SECONDS = 2.0
MOST_JOBS = 3  # of one run that end without its result, as when they run out of memory
HERE = ("local", "debug")  # submitit's executors without Slurm


@dataclass(frozen=True)
class SlurmJob:
    """What an array job calls with its run; near its time limit submitit submits it again, and it resumes."""

    path: Path
    here: Path

    def __call__(self, run: Run) -> None:
        work_elsewhere(self.path, run, self.here)

    def checkpoint(self, run: Run) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, run)


@dataclass
class SlurmEngine:
    """Submits what is open as an array, and waits for it.

    Attributes:
        parameters: Of submitit's AutoExecutor, such as timeout_min or slurm_partition; `cluster` is its cluster.
        threads: Cores of a run.
        gpus: GPUs of a run, rounded up.
        at_once: Jobs at a time without Slurm (cluster local), which starts all that it is given.
    """

    parameters: dict[str, Any]
    threads: int
    gpus: float
    at_once: int
    jobs: Counter[str] = field(default_factory=Counter)

    def run(self, folder: SweepFolder, shard: tuple[int, int], watch: Callable[[], None]) -> None:
        """Work until nothing is open.

        Raises:
            UserError: If submitit is not installed, or refuses a parameter.
        """
        need("submitit", "slurm", "sweeps on Slurm")
        executor = self._executor(folder)
        while runs := open_runs(folder, shard):
            runs = runs[: self.at_once] if executor.cluster in HERE else runs
            jobs = executor.map_array(SlurmJob(folder.path, Path.cwd()), runs)
            try:
                while not all(job.done() for job in jobs):
                    watch()
                    time.sleep(POLL_SECONDS)
            except BaseException:
                for job in jobs:
                    job.cancel()
                raise
            for run in runs:
                self._count(folder, run)

    def _executor(self, folder: SweepFolder) -> Any:
        import submitit

        options = {"name": "capaboost", "cpus_per_task": self.threads, "gpus_per_node": math.ceil(self.gpus)}
        own = options | {name: value for name, value in self.parameters.items() if name != "cluster"}
        try:
            executor = submitit.AutoExecutor(folder.path / "slurm", cluster=self.parameters.get("cluster"))
            executor.update_parameters(**own)
        except (ValueError, TypeError, RuntimeError, NameError) as error:
            raise UserError(f"--slurm: submitit refuses it ({reason_of(error)}); see docs/sweeps.md") from error
        return executor

    def _count(self, folder: SweepFolder, run: Run) -> None:
        self.jobs[run.name] += folder.is_open(run)
        if folder.is_open(run) and self.jobs[run.name] == MOST_JOBS:
            error = f"{MOST_JOBS} jobs ended without a result; their logs are in {folder.path / 'slurm'}"
            folder.fail(run, error, "died", command_line(run, folder.place(run)))
