"""CapaBoost: d parallel modules that share one weight, each through its own mask (arXiv 2407.01320)."""

from capaboost_core.adapter_files.load import load_adapter
from capaboost_core.adapter_files.peft_load import load_peft
from capaboost_core.adapter_files.peft_save import save_peft
from capaboost_core.adapter_files.save import save_adapter
from capaboost_core.errors import UserError
from capaboost_core.inject import ParameterCounts, inject, parameter_counts, trainable_parameters
from capaboost_core.methods import PRESETS, Method, register_method, resolve_config
from capaboost_core.modes import disable, merge, merged, unload, unmerge
from capaboost_core.plan import Plan, Target
from capaboost_core.weight_decay import weight_decay_groups

CapaBoostConfig = Method  # `CapaBoostConfig(method="lora", r=4)` is the method of that name with its settings

__all__ = [
    "PRESETS",
    "CapaBoostConfig",
    "ParameterCounts",
    "Method",
    "Plan",
    "Target",
    "UserError",
    "disable",
    "inject",
    "load_adapter",
    "load_peft",
    "merge",
    "merged",
    "parameter_counts",
    "register_method",
    "resolve_config",
    "save_adapter",
    "save_peft",
    "trainable_parameters",
    "unload",
    "unmerge",
    "weight_decay_groups",
]
