"""The methods, a file each; importing this registers them."""

from capaboost_core.methods import lora, padapter, hadapter, prefix, compacter, adakron, adamix, propetl, linear, full  # noqa: F401, I001  their order in lists
from capaboost_core.methods.base import Method, resolve_config
from capaboost_core.methods.registry import METHODS, PRESETS, register_method

__all__ = ["METHODS", "PRESETS", "Method", "register_method", "resolve_config"]
