"""Training commands as processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(*command: str) -> subprocess.Popen:
    """The tool and its flags, on one thread of the CPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **pipes)


def finish(process: subprocess.Popen) -> str:
    """What it printed, once it has ended without a fault."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return out
