"""Folders of `result.json` files as a sweep leaves them, with chosen values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.toy_result import RESULT

LORA = {"method": "lora", "r": 8, "num_tied": 1, "density": 1.0, "mask": "random", "alpha": 16.0, "seed": 0}
TIED = LORA | {"num_tied": 2, "density": 0.5}


def write_run(folder: Path, seed: int, value: float, adapter: Mapping[str, Any] = LORA, **fields: Any) -> Path:
    """Write one result below the folder, in a place of its own.

    Args:
        folder: Where the results of one task and method lie.
        seed: The run's.
        value: What it measured.
        adapter: Its adapter's settings; the method's name in tables follows from them.
        **fields: Fields of the result in place of a toy's; `lr` is the setting.
    """
    tied = adapter.get("num_tied", 1) > 1 or adapter.get("density", 1.0) < 1
    train = {"lr": fields.pop("lr", 0.005), "epochs": 20, "seed": seed, "output_dir": str(folder)}
    result = RESULT | {
        "method": f"{'capaboost-' if tied else ''}{adapter['method']}",
        "seed": seed,
        "value": value,
        "trainable_parameters": trainable(adapter),
        "config": {"model": {"name": "tiny"}, "train": train, "adapter": dict(adapter)},
    }
    place = folder / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    path = place / "result.json"
    path.write_text(json.dumps(result | fields))
    return path


def trainable(adapter: Mapping[str, Any]) -> int:
    """The entries that some mask keeps, of 4,608 in a module of rank 1."""
    if "r" not in adapter:
        return 0
    return round(4608 * adapter["r"] * (1 - (1 - adapter["density"]) ** adapter["num_tied"]))
