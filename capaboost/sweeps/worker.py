"""A worker process of the local engine: takes one open run after another until none is left."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from capaboost.sweeps.work import work
from capaboost_core.console import tell
from capaboost_core.errors import UserError
from capaboost_core.exit_code import DISK
from capaboost_core.training.shared import share
from capaboost_core.training.stopping import Stopped

POLL_SECONDS = 1.0
REFUSED = 2  # what a worker ends with that said in a line why none can work in this folder


def work_all(folder: SweepFolder, shard: tuple[int, int]) -> None:
    """Work until nothing is open, and leave early if the process of the sweep is gone.

    While others train what is left, their tuning may open new runs: then it waits.

    Raises:
        Stopped: After a signal.
    """
    share()
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
