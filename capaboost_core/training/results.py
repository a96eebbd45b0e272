"""One run, one `result.json`: the outcome with all that is needed to repeat and to judge it."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from capaboost_core.adapter_files.save import WEIGHTS
from capaboost_core.console import show_table
from capaboost_core.errors import UserError
from capaboost_core.files import write_atomically
from capaboost_core.inject import parameter_counts
from capaboost_core.methods import Method
from capaboost_core.training.json_text import to_json
from capaboost_core.training.run_folder import RESULT

LIBRARIES = ("torch", "timm", "transformers", "accelerate", "safetensors", "numpy")
COLUMNS = {
    "task": "task",
    "model": "model",
    "method": "method",
    "protocol": "protocol",
    "value": "value",
    "trainable_parameters": "trainable",
    "percent_trainable": "% trainable",
    "wall_seconds": "seconds",
}


def counts_of(model: nn.Module) -> dict[str, Any]:
    """The four parameter fields of a result."""
    counts = parameter_counts(model)
    return {
        "trainable_parameters": counts.trainable,
        "head_parameters": counts.head,
        "total_parameters": counts.total,
        "percent_trainable": counts.percent,
    }


def run_folder(kind: str, task: str, model: str, adapter: Method, seed: int) -> Path:
    """Where a run lives unless told otherwise: runs/<kind>/<task>/<model>/<method>-seed<seed>."""
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in model)
    return Path("runs") / kind / task / plain / f"{adapter.label}-seed{seed}"


def adapter_bytes(folder: Path) -> int:
    """Size of the trained weights' file, head included."""
    return (folder / WEIGHTS).stat().st_size


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
    """What may move a result by rounding: device, threads and versions."""
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


@dataclass(frozen=True)
class Result:
    """What a run measured, and how.

    Attributes:
        value: The metric on the test split, of which `test_metrics` holds all figures; `metrics` has
            those of the last or the selected epoch.
        selected_by: The one of `metrics` that selected the epoch, if any.
        percent_trainable: 100 * trainable / total, the head in neither.
        wall_seconds: Summed over interruptions.
        split_note: Which rows the splits are.
        config: Every setting of the run.
    """

    task: str
    method: str
    model: str
    seed: int
    protocol: str
    metric: str
    value: float
    trainable_parameters: int
    head_parameters: int
    total_parameters: int
    percent_trainable: float
    epochs: int
    selected_epoch: int
    selected_by: str | None
    metrics: dict[str, float]
    test_metrics: dict[str, float]
    unit: str
    examples_per_second: float
    wall_seconds: float
    adapter_file_bytes: int
    split_note: str
    processes: int
    device: str
    config: dict[str, Any]
    versions: dict[str, str | None] = field(default_factory=library_versions)
    git: dict[str, Any] = field(default_factory=git_state)
    command: str = field(default_factory=lambda: shlex.join(sys.argv))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the speed is named after the unit, such as `images_per_second`."""
        values = asdict(self)
        values[f"{values.pop('unit')}_per_second"] = values.pop("examples_per_second")
        return values


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Write `result.json`, whole or not at all."""
    text = to_json(result, indent=2) + "\n"
    write_atomically(folder / RESULT, lambda file: file.write(text.encode()))
    return folder / RESULT


def read_result(path: Path) -> dict[str, Any]:
    """A result file's content.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or no JSON; run its task again") from error


def print_table(results: list[dict[str, Any]]) -> None:
    """Show results, one a row."""
    table = Table()
    for title in COLUMNS.values():
        table.add_column(title, overflow="fold")
    for result in results:
        table.add_row(*(_cell(result, name) for name in COLUMNS))
    show_table(table)


def _cell(result: dict[str, Any], name: str) -> str:
    value = result[name]
    if name == "value":
        return f"{result['metric']} {'undefined' if value is None else f'{value:.2f}'}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)
