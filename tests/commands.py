"""Training commands as processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(*command: str) -> subprocess.Popen:
    """The tool and its flags, on one thread of the CPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **pipes)


def two_processes(*command: str, **environment: str | None) -> subprocess.Popen:
    """The command under torchrun in two processes; an environment variable that is None is left out."""
    return processes(2, *command, **environment)


def processes(count: int, *command: str, **environment: str | None) -> subprocess.Popen:
    """As `two_processes`, but of any number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master_port", port]
    here = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)} | environment
    here = {name: value for name, value in here.items() if value is not None}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, *command], cwd=ROOT, env=here, **pipes)


def finish(process: subprocess.Popen, timeout: float = 400) -> str:
    """What it printed, once it has ended without a fault."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out
