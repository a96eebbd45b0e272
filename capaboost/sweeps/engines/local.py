"""Worker processes on this machine, each with its share of the cores or a GPU of its own.

They are forked from a process that has imported the libraries once, so that each begins within a tenth of a second and
shares their memory. Where GPUs are used that process imports nothing, since a fork of one that has asked for a GPU
cannot use it; each worker then imports by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess

from capaboost.runs.trainings import TRAININGS
from capaboost.sweeps import work as worker
from capaboost.sweeps.claims import holder
from capaboost.sweeps.estimate import largest_model
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from capaboost.sweeps.runs import Run
from capaboost.sweeps.sweep_file import SweepFile
from capaboost.sweeps.work import command_line
from capaboost.training.processes import wait_policy
from capaboost_core.errors import UserError

MOST_DEATHS = 3  # of workers over one run, such as one that fills the memory
POLL_SECONDS = 0.5
STOP_SECONDS = 60.0  # for a step and a checkpoint


SMALL_MODEL = 10_000_000  # parameters: products so small that threads wait for each other longer than they work


def local_engine(
    sweep: SweepFile, workers: int | None, threads: int | None = None, gpus: tuple[str, ...] | None = None
) -> LocalEngine:
    """Workers on this machine, by default one for each GPU or else one.

    They share its GPUs and its cores. Without `threads` each worker has the user's OMP_NUM_THREADS; else one thread,
    where no GPU is used and all models of the sweep are small; else its share of the cores.
    """
    import torch

    gpus = gpus or tuple(map(str, range(torch.cuda.device_count())))
    workers = workers or max(1, len(gpus))
    return LocalEngine(workers, threads or _threads(sweep, workers, bool(gpus)), gpus)


def _threads(sweep: SweepFile, workers: int, has_gpus: bool) -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    if not has_gpus and largest_model(sweep) < SMALL_MODEL:
        return 1
    return max(1, len(os.sched_getaffinity(0)) // workers)


@dataclass
class LocalEngine:
    """Keeps workers alive until no run is open.

    Attributes:
        workers: Processes.
        threads: Of each of them on the CPU.
        gpus: Given to the workers in turn; several share one where there are more workers.
        deaths: Of workers by the run that they were at.
        idle_deaths: Of workers that were at none.
    """

    workers: int
    threads: int
    gpus: tuple[str, ...] = ()
    deaths: Counter[str] = field(default_factory=Counter)
    idle_deaths: int = 0

    def run(self, folder: SweepFolder, shard: tuple[int, int], watch: Callable[[], None]) -> None:
        """Work until nothing is open; `watch` is called twice a second.

        A worker that dies is replaced. A run over which three have died is recorded as failed.

        Raises:
            UserError: If three died before they began a run, or one cannot write in the folder.
            KeyboardInterrupt: After a signal; the workers have then saved their runs.
        """
        processes: dict[int, ForkServerProcess] = {}
        os.environ.update(wait_policy(side_by_side=self.workers > 1))
        _start_server([] if self.gpus else ["capaboost.sweeps.work", TRAININGS[folder.sweep().command].module])
        try:
            while True:
                for slot in range(self.workers):
                    if slot in processes and processes[slot].exitcode not in (None, 0):
                        self._note_death(folder, shard, processes.pop(slot))
                    if slot not in processes and self._is_needed(folder, shard, len(processes)):
                        processes[slot] = self._start(folder, shard, slot)
                watch()
                if all(process.exitcode == 0 for process in processes.values()):
                    return
                time.sleep(POLL_SECONDS)
        finally:
            _stop(list(processes.values()))

    def _is_needed(self, folder: SweepFolder, shard: tuple[int, int], alive: int) -> bool:
        plan = plan_of(folder.sweep(), folder, shard)
        return sum(map(folder.is_open, plan.runs)) + plan.undecided > alive

    def _start(self, folder: SweepFolder, shard: tuple[int, int], slot: int) -> ForkServerProcess:
        here = dict(os.environ) | {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            here |= {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]}
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=worker.main, args=(folder.path, shard, here))
        try:
            process.start()
        except (EOFError, OSError) as error:
            raise UserError("no worker can be started; what was printed stands above") from error
        return process

    def _note_death(self, folder: SweepFolder, shard: tuple[int, int], process: ForkServerProcess) -> None:
        code = process.exitcode
        assert code is not None
        if code == worker.REFUSED:
            raise UserError("a worker cannot go on, for the reason that it printed above; the same command goes on")
        for run in plan_of(folder.sweep(), folder, shard).runs:
            if (holder(folder.claim(run)) or {}).get("pid") == process.pid:
                self._count(folder, run, code)
                return
        self.idle_deaths += 1
        if self.idle_deaths == MOST_DEATHS:
            raise UserError(
                f"workers end with exit code {code} before they begin a run; what they printed stands above"
            )

    def _count(self, folder: SweepFolder, run: Run, code: int) -> None:
        folder.claim(run).unlink(missing_ok=True)
        self.deaths[run.name] += 1
        if self.deaths[run.name] == MOST_DEATHS:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            error = f"its process ended with {how}, {MOST_DEATHS} times"
            folder.fail(run, error, "died", command_line(run, folder.place(run)))


def _start_server(modules: list[str]) -> None:
    """Ctrl-C stays blocked in it and in the workers: it reaches the sweep alone, which stops them in order."""
    forkserver.set_forkserver_preload(modules)
    resource_tracker.ensure_running()  # which would unblock it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(processes: list[ForkServerProcess]) -> None:
    """SIGTERM lets a run finish its step and save."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()
