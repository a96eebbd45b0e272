"""A sweep of runs of seconds, and the values of its results."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.sweep_file import SweepFile
from tests import commands
from tests.commands import Command

TINY = {"model.name": "test_vit", "model.pretrained": False, "model.drop_path_rate": 0.1, "train.epochs": 2}
FAST = TINY | {"model.img_size": 32, "train.mixed_precision": "no"}


def sweep_file(**changes) -> SweepFile:
    values = dict(command="train-vtab", tasks=["digits"], methods=["linear", "lora"], seeds=[1, 2], set=dict(TINY))
    return SweepFile.from_dict(values | changes)


def write_file(path: Path, **changes) -> Path:
    path.write_text(json.dumps(sweep_file(**changes).to_dict()))  # JSON is YAML
    return path


def start(file: Path, folder: Path, *more: str) -> Command:
    """`capaboost sweep` as a process of its own, on the CPU."""
    return commands.start("-m", "capaboost", "sweep", str(file), "--output-dir", str(folder), *more)


def put_result(folder: SweepFolder, name: str, value: float | None, metric: str = "accuracy") -> None:
    place = folder.path / name
    place.mkdir(parents=True)
    result = {"value": value, "metric": metric, "wall_seconds": 2.0, "config": {}}
    (place / "result.json").write_text(json.dumps(result))


def outcome(folder: Path) -> dict[str, object]:
    """What a sweep measured, by run: all that does not depend on when and where it ran, and the trained tensors."""
    found = {}
    for path in sorted(folder.rglob("result.json")):
        result = json.loads(path.read_text())
        kept = ("value", "metrics", "test_metrics", "config", "trainable_parameters", "tuning", "selected_epoch")
        name = str(path.parent.relative_to(folder))
        tensors = load_file(path.parent / "adapter" / "adapter.safetensors")
        found[name] = {key: result.get(key) for key in kept} | {
            "tensors": {key: tensor.tolist() for key, tensor in tensors.items()}
        }
    return found
