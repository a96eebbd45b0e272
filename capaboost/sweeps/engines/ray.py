"""Ray: each run is a task with its resources, on a cluster that exists or on this machine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capaboost.sweeps.claims import EXPIRE_SECONDS
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import open_runs
from capaboost.sweeps.runs import Run
from capaboost.sweeps.work import work_elsewhere
from capaboost.training.processes import wait_policy
from capaboost_core.extras import need
from capaboost_core.methods.method import PLUGINS

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class RayEngine:
    """Submits what is open; a run whose node or process dies is tried again elsewhere.

    Attributes:
        address: Of a cluster, as `ray.init` takes it; None takes the one that RAY_ADDRESS names, or starts one here.
        threads: Cores of a run.
        gpus: GPUs of a run; with 0.25 four runs share one.
    """

    address: str | None
    threads: int
    gpus: float

    def run(self, folder: SweepFolder, shard: tuple[int, int], watch: Callable[[], None]) -> None:
        """Work until nothing is open.

        Raises:
            UserError: If Ray is not installed.
        """
        need("ray", "ray", "sweeps on Ray")
        import ray

        if not ray.is_initialized():
            paths = os.pathsep.join(filter(None, sys.path))
            plugins = {PLUGINS: os.environ[PLUGINS]} if PLUGINS in os.environ else {}
            own = (
                plugins | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(self.threads)} | wait_policy(side_by_side=True)
            )
            environment = {"env_vars": own}
            ray.init(address=self.address, runtime_env=environment, log_to_driver=False, include_dashboard=False)
        task = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=-1)(do)
        submitted: dict[str, Any] = {}
        while True:
            for run in open_runs(folder, shard):
                if run.name not in submitted:
                    submitted[run.name] = task.remote(folder.path, run, Path.cwd())
            if not submitted:
                return
            done, _ = ray.wait(list(submitted.values()), timeout=POLL_SECONDS)
            for name, reference in list(submitted.items()):
                if reference in done:
                    ray.get(submitted.pop(name))
            watch()


def do(path: Path, run: Run, here: Path) -> None:
    """The task. A claim that a dead node left has to expire first: until then it waits."""
    until = time.monotonic() + 2 * EXPIRE_SECONDS
    while not work_elsewhere(path, run, here) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
