"""The methods, a file each; importing this registers them."""

from capaboost_core.methods import (  # noqa: F401, I001  their order in lists
    lora,
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
    linear,
    full,
)
from capaboost_core.methods.base import Method, resolve_config
from capaboost_core.methods.registry import METHODS, PRESETS, register_method

__all__ = ["METHODS", "PRESETS", "Method", "register_method", "resolve_config"]
