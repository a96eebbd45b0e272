"""The record of a run, `result.json`: the outcome with everything needed to repeat and assess it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from capaboost_core.adapter_files.save import WEIGHTS
from capaboost_core.errors import UserError
from capaboost_core.files import read_text, write_atomically
from capaboost_core.injection import parameter_counts
from capaboost_core.training.json_text import is_number, to_json
from capaboost_core.training.provenance import command_line, git_state, library_versions
from capaboost_core.training.run_folder import RESULT


@dataclass(frozen=True)
class Result:
    """What a run measured, and how.

    Attributes:
        value: The metric on the test split, of which `test_metrics` holds all figures; `metrics` has
            those of the last or the selected epoch.
        selected_by: The one of `metrics` that selected the epoch, if any.
        percent_trainable: 100 * trainable / total, the head in neither.
        wall_seconds: Summed over interruptions.
        split_note: Which rows the splits hold.
        config: Every setting of the run.
        data_hash: Of the rows and labels that the run trained on, where its task knows one.
        weights_hash: Of the pretrained weights, bit for bit: the base as it was before training, without its head.
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
    data_hash: str | None = None
    weights_hash: str | None = None
    versions: dict[str, str | None] = field(default_factory=library_versions)
    git: dict[str, Any] = field(default_factory=git_state)
    command: str = field(default_factory=command_line)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the speed is named after the unit, such as `images_per_second`."""
        values = asdict(self)
        values[f"{values.pop('unit')}_per_second"] = values.pop("examples_per_second")
        return values


def counts_of(model: nn.Module) -> dict[str, Any]:
    """The four parameter fields of a result."""
    counts = parameter_counts(model)
    return {
        "trainable_parameters": counts.trainable,
        "head_parameters": counts.head,
        "total_parameters": counts.total,
        "percent_trainable": counts.percent,
    }


def adapter_bytes(folder: Path) -> int:
    """Size of the trained weights' file, head included."""
    return (folder / WEIGHTS).stat().st_size


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Write `result.json` atomically."""
    text = to_json(result, indent=2) + "\n"
    write_atomically(folder / RESULT, lambda file: file.write(text.encode()))
    return folder / RESULT


def read_result(path: Path) -> dict[str, Any]:
    """A result file's content; a value that is not finite is None, as `write_result` has it.

    Raises:
        UserError: If it cannot be read, or somebody changed what resuming and sweeps need of it.
    """
    try:
        result = json.loads(read_text(path), parse_constant=lambda name: None)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or no JSON; delete it to run its task again") from error
    values = result if isinstance(result, dict) else {}
    wrong = [name for name, fits in NEEDED.items() if not fits(values.get(name))]
    if wrong:
        raise UserError(f"{path} lacks a usable {', '.join(wrong)}; delete it to run its task again")
    return result


NEEDED: dict[str, Callable[[Any], bool]] = {
    "value": lambda value: value is None or is_number(value),
    "metric": lambda value: isinstance(value, str),
    "wall_seconds": lambda value: is_number(value) and value >= 0,
    "config": lambda value: isinstance(value, dict),
}
