"""CapaBoost: d parallel modules that share one weight, each through its own mask (arXiv 2407.01320)."""

from capaboost_core.config import PRESETS, CapaBoostConfig, resolve_config
from capaboost_core.errors import UserError
from capaboost_core.inject import ParameterCounts, inject, parameter_counts, trainable_parameters
from capaboost_core.loading import load_adapter
from capaboost_core.modes import disable, merge, merged, unload, unmerge
from capaboost_core.peft_load import load_peft
from capaboost_core.peft_save import save_peft
from capaboost_core.plan import Plan, Target
from capaboost_core.state import save_adapter

__all__ = [
    "PRESETS",
    "CapaBoostConfig",
    "ParameterCounts",
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
    "resolve_config",
    "save_adapter",
    "save_peft",
    "trainable_parameters",
    "unload",
    "unmerge",
]
