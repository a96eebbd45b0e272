"""CapaBoost: d parallel modules that share one weight, each through its own mask (arXiv 2407.01320).

A name of the API imports its module, and torch with it, when it is first used: settings, errors and help need none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capaboost_core.adapter_files.load import load_adapter
    from capaboost_core.adapter_files.peft import load_peft, save_peft
    from capaboost_core.adapter_files.save import save_adapter
    from capaboost_core.errors import UserError
    from capaboost_core.injection import (
        ParameterCounts,
        inject,
        parameter_counts,
        trainable_parameters,
        weight_decay_groups,
    )
    from capaboost_core.methods import PRESETS, CapaBoostConfig, Method, register_method, resolve_config
    from capaboost_core.mixed_batch import mixed_batch
    from capaboost_core.modes import disable, merge, merged, unload, unmerge
    from capaboost_core.named import active_adapter, adapter_names, delete_adapter, set_adapter
    from capaboost_core.plan import Plan, Target

MODULES = {
    "adapter_files.load": ("load_adapter",),
    "adapter_files.peft": ("load_peft", "save_peft"),
    "adapter_files.save": ("save_adapter",),
    "errors": ("UserError",),
    "injection": ("ParameterCounts", "inject", "parameter_counts", "trainable_parameters", "weight_decay_groups"),
    "methods": ("PRESETS", "CapaBoostConfig", "Method", "register_method", "resolve_config"),
    "mixed_batch": ("mixed_batch",),
    "modes": ("disable", "merge", "merged", "unload", "unmerge"),
    "named": ("active_adapter", "adapter_names", "delete_adapter", "set_adapter"),
    "plan": ("Plan", "Target"),
}
MODULE_OF = {name: module for module, names in MODULES.items() for name in names}

__all__ = [
    "PRESETS",
    "CapaBoostConfig",
    "ParameterCounts",
    "Method",
    "Plan",
    "Target",
    "UserError",
    "active_adapter",
    "adapter_names",
    "delete_adapter",
    "disable",
    "inject",
    "load_adapter",
    "load_peft",
    "merge",
    "merged",
    "mixed_batch",
    "parameter_counts",
    "register_method",
    "resolve_config",
    "save_adapter",
    "save_peft",
    "set_adapter",
    "trainable_parameters",
    "unload",
    "unmerge",
    "weight_decay_groups",
]


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
