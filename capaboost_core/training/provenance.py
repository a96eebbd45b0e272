"""Where a result comes from: versions, commit, device and command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("capaboost", "torch", "timm", "transformers", "accelerate", "safetensors", "numpy")


def library_versions() -> dict[str, str | None]:
    """Versions of Python and the libraries; None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def surroundings(device: torch.device) -> dict[str, Any]:
    """What may change a result by rounding: device, threads and versions."""
    return {"device": device_name(device), "threads": torch.get_num_threads(), "versions": library_versions()}


def git_state() -> dict[str, Any]:
    """Commit of the code and whether it was changed since; both None outside a git checkout."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if commit is None or status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def command_line() -> str:
    """The running command, quoted for a shell."""
    return shlex.join(sys.argv)
