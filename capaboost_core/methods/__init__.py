"""The methods, a file each; importing this registers them, in the order of lists."""
# ruff: noqa: F401, I001

from capaboost_core.methods import (
    lora,
    allocated_lora,
    padapter,
    hadapter,
    prefix,
    adaptformer,
    vpt,
    repadapter,
    fact,
    bitfit,
    ssf,
    hadamard,
    adakron,
    adamix,
    compacter,
    propetl,
    unipelt,
    noah,
    noah_supernet,
    linear,
    full,
    from_peft,
)
from capaboost_core.methods.base import Method, resolve_config
from capaboost_core.methods.registry import METHODS, PRESETS, register_method

__all__ = ["METHODS", "PRESETS", "Method", "register_method", "resolve_config"]
