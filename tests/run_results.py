"""Folders of `result.json` files as a sweep leaves them, with chosen values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.toy_result import RESULT

LORA = {"method": "lora", "r": 8, "num_tied": 1, "density": 1.0, "mask": "random", "alpha": 16.0, "seed": 0}
TIED = LORA | {"num_tied": 2, "density": 0.5}

# FacT-TK's published row of VTAB-1k, and its tasks.
FACT = """70.6 90.6 70.8 99.1 90.7 88.6 54.1 84.8 96.2 84.5 75.7 82.6 68.2 49.8 80.7 80.8 47.4 33.2 43.0"""
ORDER = """cifar caltech101 dtd oxford_flowers102 oxford_iiit_pet svhn sun397 patch_camelyon eurosat resisc45
diabetic_retinopathy clevr_count clevr_dist dmlab kitti dsprites_loc dsprites_ori smallnorb_azi smallnorb_ele"""


def write_run(folder: Path, seed: int, value: float, adapter: Mapping[str, Any] = LORA, **fields: Any) -> Path:
    """Write one result below the folder, in a place of its own.

    Args:
        folder: Where the results of one task and method lie.
        seed: The run's.
        value: What it measured.
        adapter: Its adapter's settings; the method's name in tables follows from them.
        **fields: Fields of the result in place of a toy's; `lr` and `test` are settings of training.
    """
    tied = adapter.get("num_tied", 1) > 1 or adapter.get("density", 1.0) < 1
    train = {"lr": fields.pop("lr", 0.005), "test": fields.pop("test", True)}
    train |= {"epochs": 20, "seed": seed, "output_dir": str(folder)}
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
