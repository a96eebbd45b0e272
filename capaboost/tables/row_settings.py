"""The settings that a row of the result table shows."""

from __future__ import annotations

from typing import Any

from capaboost_core.methods import METHODS
from capaboost_core.methods.lora import LoRA

PLACES = ("seed", "output_dir", "resume", "data_dir")  # settings in which two runs of one row may differ
# Shown in every row, in a column, in its method's name or by `settings_of`; all else is shown where rows differ in it.
COLUMNS = ("model.name", "data.task", "data.dataset", "data.protocol", "train.epochs", "adapter.method")
NAMED = ("model.pretrained", "train.lr", "adapter.r", "adapter.alpha", "adapter.scaling", "adapter.targets")
BY_METHOD = ("adapter.num_tied", "adapter.density")  # a plain method has others than its tied form by its name


def has_rank(adapter: dict[str, Any]) -> bool:
    """Whether the adapter's method has an inner dimension r; files of 0.1.0 have one for the baselines too."""
    return "r" in getattr(METHODS.get(adapter.get("method")), "model_fields", ())


def settings_of(config: dict[str, Any]) -> str:
    """The settings that every row shows: the start, the learning rate, the adapter's size, scale and places."""
    model, train, adapter = (config.get(section, {}) for section in ("model", "train", "adapter"))
    parts = [] if model.get("pretrained", True) else ["random weights"]
    parts += [f"lr {train['lr']:g}"] if "lr" in train else []
    if has_rank(adapter):
        alpha = adapter.get("alpha") or adapter["r"]
        scaling = " stable" if adapter.get("scaling") == "stable" else ""
        parts += [f"r {adapter['r']}", f"alpha {alpha:g}{scaling}"]
        targets = adapter.get("targets") if "targets" in METHODS[adapter["method"]].used(adapter) else None
        chosen = targets not in (None, LoRA.model_fields["targets"].default)
        parts += [" ".join([targets] if isinstance(targets, str) else targets)] if chosen else []
    return ", ".join(parts)


def differences(result: dict[str, Any], others: list[dict[str, Any]]) -> list[str]:
    """The settings, as `name value`, in which a row differs from another one of its task, model and protocol.

    A setting that a file does not have is left out of the comparison.
    """
    same = [o for o in others if all(o[name] == result[name] for name in ("task", "model", "protocol"))]
    compared = [(other["method"], _leaves(other.get("config", {}))) for other in same]
    parts = []
    for name, value in _leaves(result.get("config", {})).items():
        peers = [leaves for method, leaves in compared if method == result["method"] or name not in BY_METHOD]
        if any(leaves.get(name, value) != value for leaves in peers):
            parts.append(f"{name.partition('.')[2].replace('_', ' ')} {'none' if value is None else value}")
    return parts


def _leaves(config: dict[str, Any]) -> dict[str, Any]:
    """The settings by section and name that no column or `settings_of` shows; of a baseline, none of an adapter."""
    without = () if has_rank(config.get("adapter", {})) else ("adapter",)
    return {
        f"{section}.{key}": value
        for section, settings in config.items()
        if section not in without and isinstance(settings, dict)
        for key, value in settings.items()
        if key not in PLACES and f"{section}.{key}" not in COLUMNS + NAMED
    }
