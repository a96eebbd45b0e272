"""Work on a sweep's runs in this process: claim an open run, train it, record its result or its error."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from capaboost.console import tell
from capaboost.exit_code import DISK
from capaboost.runs.trainings import TRAININGS, train
from capaboost.sweeps.claims import claimed
from capaboost.sweeps.folder import LOG, SweepFolder
from capaboost.sweeps.plan import plan_of
from capaboost.sweeps.runs import Run
from capaboost.training.loop import Stopped
from capaboost.training.run_folder import InUse, check_folder
from capaboost_core.errors import DivergedError, UserError, is_no_memory, no_memory_line
from capaboost_core.task import keep_cached


def work(folder: SweepFolder, run: Run) -> bool:
    """Do a run that is open and that nobody works on; it resumes from its checkpoint, whoever wrote that.

    Returns:
        Whether this process did something for it.

    Raises:
        Stopped: After a signal; the run is saved.
    """
    if not folder.is_open(run):
        return False
    with claimed(folder.claim(run)) as mine:
        if not mine or not folder.is_open(run):  # another may have finished it in between
            return False
        return _train(folder, run)


def work_elsewhere(path: Path, run: Run, here: Path) -> bool:
    """`work` in a process that another engine started; paths in the sweep's file are relative to `here`.

    Returns:
        Whether the run is over.
    """
    os.chdir(here)
    keep_cached()
    folder = SweepFolder(path)
    work(folder, run)
    return not folder.is_open(run)


def command_line(run: Run, place: Path) -> str:
    """What to type, in the folder where the sweep was started, to do the run by itself."""
    here = Path.cwd()
    shown = place.relative_to(here) if place.is_relative_to(here) else place
    return shlex.join(["capaboost", run.command, *run.arguments, "--output-dir", str(shown), "--resume"])


def _train(folder: SweepFolder, run: Run) -> bool:
    place, typed = folder.place(run), command_line(run, folder.place(run))
    try:
        check_folder(place, resume=True)
        settings = run.load()
        with _logged(place / LOG, typed):
            train(settings, place, resume=True, prepare=TRAININGS[run.command].prepare, command=typed)
    except InUse:  # by a process that another engine left behind
        return False
    except UserError as error:
        kind = "diverged" if isinstance(error, DivergedError) else "error"
        folder.fail(run, str(error), kind, typed)
    except Exception as error:
        line = no_memory_line(error) if is_no_memory(error) else f"{type(error).__name__}: {error}"
        folder.fail(run, line, "error", typed)
    return True


@contextlib.contextmanager
def _logged(log: Path, typed: str) -> Iterator[None]:
    """Within the context, what the run prints goes to its log, below its command."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(log, "a", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        print(f"$ {typed}", flush=True)
        try:
            yield
        except Exception as error:
            print(f"error: {error}") if isinstance(error, UserError) else traceback.print_exc()
            raise


POLL_SECONDS = 1.0
REFUSED = 2  # what a worker ends with that said in a line why none can work in this folder


def work_all(folder: SweepFolder, shard: tuple[int, int]) -> None:
    """Work until nothing is open, and leave early if the process of the sweep is gone.

    While others train what is left, their tuning may open new runs: then it waits.

    Raises:
        Stopped: After a signal.
    """
    keep_cached()
    sweep = multiprocessing.parent_process()
    while sweep is None or sweep.is_alive():
        runs = plan_of(folder.sweep(), folder, shard).runs
        if any(work(folder, run) for run in runs):
            continue  # the plan may be another now
        if not any(folder.is_open(run) for run in runs):
            return
        time.sleep(POLL_SECONDS)


def exit_code(path: Path, shard: tuple[int, int]) -> int:
    """Work, and what the process ends with."""
    try:
        work_all(SweepFolder(path), shard)
    except (Stopped, KeyboardInterrupt) as stop:
        return 128 + getattr(stop, "number", 2)
    except UserError as error:  # in the sweep's folder; what is wrong in a run is recorded there
        tell(f"error: {error}")
        return REFUSED
    except OSError as error:
        if error.errno not in DISK:
            raise
        tell(f"error: cannot write in {path}: {error.strerror}; free some space, or choose another --output-dir")
        return REFUSED
    return 0


def main(path: Path, shard: tuple[int, int], environment: dict[str, str]) -> None:
    """What the process runs. It may be a fork that has its libraries from before this environment was known."""
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.exit(exit_code(path, shard))
