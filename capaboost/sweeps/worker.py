"""A worker process: takes one open run after another until none is left. python -m capaboost.sweeps.worker FOLDER"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from capaboost.sweeps.work import work
from capaboost_core.console import tell
from capaboost_core.errors import UserError
from capaboost_core.training.shared import share
from capaboost_core.training.stopping import Stopped

POLL_SECONDS = 1.0


def work_all(folder: SweepFolder, shard: tuple[int, int]) -> None:
    """Work until nothing is open, and leave early if the sweep that started this process is gone.

    While others train what is left, their tuning may open new runs: then it waits.

    Raises:
        Stopped: After a signal.
    """
    share()
    parent = os.getppid()
    while os.getppid() == parent:
        runs = plan_of(folder.sweep(), folder, shard).runs
        if any(work(folder, run) for run in runs):
            continue  # the plan may be another now
        if not any(folder.is_open(run) for run in runs):
            return
        time.sleep(POLL_SECONDS)


def main(arguments: list[str]) -> int:
    path, part, parts = arguments
    try:
        work_all(SweepFolder(Path(path)), (int(part), int(parts)))
    except (Stopped, KeyboardInterrupt) as stop:
        return 128 + getattr(stop, "number", 2)
    except UserError as error:  # in the sweep's folder; what is wrong in a run is recorded there
        tell(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
