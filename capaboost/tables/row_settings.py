"""The settings by which runs differ, those that were selected from a grid, and those that a table shows."""

from __future__ import annotations

import json
from typing import Any

from capaboost_core.methods import METHODS
from capaboost_core.methods.lora import LoRA

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


IGNORED_SETTINGS = ("seed", "output_dir", "resume", "data_dir")  # settings in which two runs of one row may differ
COLUMNS = ("model.name", "data.task", "data.dataset", "data.protocol", "train.epochs", "adapter.method")
# Shown in every row, in its method's name or by `settings_of`; all else is shown where rows differ in it.
NAMED = ("model.pretrained", "train.lr", "adapter.r", "adapter.alpha", "adapter.scaling", "adapter.targets")
BY_METHOD = ("adapter.num_tied", "adapter.density")  # a plain method has others than its tied form by its name


def has_rank(adapter: dict[str, Any]) -> bool:
    """Whether the adapter's method has an inner dimension r; files of 0.1.0 have one for the baselines too."""
    return "r" in getattr(METHODS.get(adapter.get("method", "")), "model_fields", ())


def run_settings(result: dict[str, Any]) -> dict[str, Any]:
    """Every setting by section and name, such as `train.epochs`; seeds and folders are left out.

    Of a method without r there is none of the adapter. Of a setting that was selected from a grid, it is the grid.
    """
    return _settings(result) | {name: _grid(values) for name, values in tried(result).items()}


def _settings(result: dict[str, Any]) -> dict[str, Any]:
    config = result.get("config", {})
    without = () if has_rank(config.get("adapter", {})) else ("adapter",)
    return {
        f"{section}.{key}": value
        for section, values in config.items()
        if section not in without and isinstance(values, dict)
        for key, value in values.items()
        if key not in IGNORED_SETTINGS
    }


def settings_of(results: list[dict[str, Any]]) -> str:
    """The settings that every row shows: the start, the learning rate, the adapter's size, scale and targets.

    What was selected from a grid is shown with it: `lr 0.001 of {0.001, 0.01}`.
    """
    config, grids = results[0].get("config", {}), tried(results[0])
    model, train, adapter = (config.get(section, {}) for section in ("model", "train", "adapter"))
    parts = [] if model.get("pretrained", True) else ["random weights"]
    parts += [f"lr {_values(results, 'train.lr')}"] if "lr" in train else []
    if has_rank(adapter):
        parts += [f"r {_values(results, 'adapter.r')}", *_alpha(results)]
        targets = adapter.get("targets") if "targets" in METHODS[adapter["method"]].used(adapter) else None
        chosen = targets not in (None, LoRA.model_fields["targets"].default)
        parts += [" ".join([targets] if isinstance(targets, str) else targets)] if chosen else []
    return ", ".join(parts + [shown_setting(name, _values(results, name)) for name in grids if name not in NAMED])


def _alpha(results: list[dict[str, Any]]) -> list[str]:
    """The scale of increments, for a method that has one; without an alpha it is r."""
    adapter = results[0]["config"]["adapter"]
    if "alpha" not in METHODS[adapter["method"]].model_fields:
        return []
    alpha = _values(results, "adapter.alpha") if adapter.get("alpha") else f"{adapter['r']:g}"
    return [f"alpha {alpha} stable" if adapter.get("scaling") == "stable" else f"alpha {alpha}"]


def _values(results: list[dict[str, Any]], name: str) -> str:
    """A setting's value, or those selected for each seed, and the grid that they are from."""
    values = [_settings(result).get(name) for result in results]
    text = " or ".join(dict.fromkeys(f"{value:g}" if isinstance(value, float) else str(value) for value in values))
    grid = tried(results[0]).get(name)
    return f"{text} of {_grid(grid)}" if grid else text


def _grid(values: list[str]) -> str:
    return f"{{{', '.join(values)}}}"


def differences(settings: dict[str, Any], method: str, others: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """The settings, as `name value`, in which a row differs from another one.

    A setting that a file does not have is left out of the comparison.

    Args:
        settings: Those of the row, by `run_settings`.
        method: The row's method.
        others: Method and settings of the rows to compare with.
    """
    parts = []
    for name, value in settings.items():
        if name not in COLUMNS + NAMED:
            peers = [other for label, other in others if label == method or name not in BY_METHOD]
            parts += [shown_setting(name, value)] if any(o.get(name, value) != value for o in peers) else []
    return parts


def same_value(value: Any) -> str:
    """A text that is the same for equal values: 16.0 is 16."""
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value, sort_keys=True)


def shown_setting(name: str, value: Any) -> str:
    """`train.batch_size`, 32 -> `batch size 32`."""
    return f"{name.partition('.')[2].replace('_', ' ')} {'none' if value is None else value}"
