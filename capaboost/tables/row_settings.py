"""The settings by which runs are told apart, and those that a table shows."""

from __future__ import annotations

import json
from typing import Any

from capaboost_core.methods import METHODS
from capaboost_core.methods.lora import LoRA

PLACES = ("seed", "output_dir", "resume", "data_dir")  # settings in which two runs of one row may differ
COLUMNS = ("model.name", "data.task", "data.dataset", "data.protocol", "train.epochs", "adapter.method")
# Shown in every row, in its method's name or by `settings_of`; all else is shown where rows differ in it.
NAMED = ("model.pretrained", "train.lr", "adapter.r", "adapter.alpha", "adapter.scaling", "adapter.targets")
BY_METHOD = ("adapter.num_tied", "adapter.density")  # a plain method has others than its tied form by its name


def has_rank(adapter: dict[str, Any]) -> bool:
    """Whether the adapter's method has an inner dimension r; files of 0.1.0 have one for the baselines too."""
    return "r" in getattr(METHODS.get(adapter.get("method")), "model_fields", ())


def run_settings(result: dict[str, Any]) -> dict[str, Any]:
    """Every setting by section and name, such as `train.epochs`; seeds and places are left out.

    Of a method without r there is none of the adapter. A rate that was selected from a grid is the grid.
    """
    config = result.get("config", {})
    without = () if has_rank(config.get("adapter", {})) else ("adapter",)
    settings = {
        f"{section}.{key}": value
        for section, values in config.items()
        if section not in without and isinstance(values, dict)
        for key, value in values.items()
        if key not in PLACES
    }
    return settings | ({"train.lr": _grid(result)} if result.get("lr_grid") else {})


def settings_of(config: dict[str, Any], rate: str | None = None) -> str:
    """The settings that every row shows: the start, the learning rate, the adapter's size, scale and places.

    Args:
        config: Every setting of a run.
        rate: The rate as `rate_of` has it, if not as the config has it.
    """
    model, train, adapter = (config.get(section, {}) for section in ("model", "train", "adapter"))
    parts = [] if model.get("pretrained", True) else ["random weights"]
    parts += [f"lr {rate or format(train['lr'], 'g')}"] if "lr" in train else []
    if has_rank(adapter):
        alpha = adapter.get("alpha") or adapter["r"]
        scaling = " stable" if adapter.get("scaling") == "stable" else ""
        parts += [f"r {adapter['r']}", f"alpha {alpha:g}{scaling}"]
        targets = adapter.get("targets") if "targets" in METHODS[adapter["method"]].used(adapter) else None
        chosen = targets not in (None, LoRA.model_fields["targets"].default)
        parts += [" ".join([targets] if isinstance(targets, str) else targets)] if chosen else []
    return ", ".join(parts)


def rate_of(results: list[dict[str, Any]]) -> str:
    """The learning rate of runs of one row: one, or the ones selected for each seed, and the grid of the selection."""
    rates = sorted({result["config"]["train"]["lr"] for result in results if "lr" in _train(result)})
    text = " or ".join(f"{rate:g}" for rate in rates)
    return f"{text} of {_grid(results[0])}" if results[0].get("lr_grid") or results[0].get("tuning") else text


def _train(result: dict[str, Any]) -> dict[str, Any]:
    return result.get("config", {}).get("train", {})


def _grid(result: dict[str, Any]) -> str:
    """The rates that were tried; of a sweep that tuned more than one setting, the combinations."""
    tried = result.get("lr_grid") or result["tuning"]["grid"]
    return f"{{{', '.join(name.removeprefix('lr=') for name in tried)}}}"


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
