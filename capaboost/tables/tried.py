"""The settings of a run that were selected from a grid, and the values that were tried."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]


def tried(result: Result) -> dict[str, list[str]]:
    """The values by section and name, from `--lr-grid` or the tuning of a sweep; of a run without a grid none."""
    if grid := result.get("lr_grid"):
        return {"train.lr": list(grid)}
    tuning = result.get("tuning") or {"chosen": {}, "grid": {}}
    labels = [dict(part.partition("=")[::2] for part in label.split(",")) for label in tuning["grid"]]
    names = {name: name.rpartition(".")[2] for name in tuning["chosen"]}
    return {name: list(dict.fromkeys(label.get(key, "") for label in labels)) for name, key in names.items()}


def is_tuning(result: Result) -> bool:
    """Whether the run only tuned: its test rows stayed unseen."""
    config = result.get("config")
    train = config.get("train") if isinstance(config, dict) else None
    return isinstance(train, dict) and train.get("test") is False


def wrong_grids(result: Result) -> list[str]:
    """Names of the fields that `tried` cannot read."""
    wrong = [] if isinstance(result.get("lr_grid") or {}, dict) else ["lr_grid"]
    tuning = result.get("tuning") or {}
    usable = isinstance(tuning, dict) and (
        not tuning or all(isinstance(tuning.get(k), dict) for k in ("chosen", "grid"))
    )
    return wrong if usable else [*wrong, "tuning"]
