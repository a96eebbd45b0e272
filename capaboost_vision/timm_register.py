"""Give `timm.create_model` the argument `capaboost`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from timm.models import _hub, _registry
from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.injection import find_injection
from capaboost_core.injection import inject as inject_plan
from capaboost_core.methods import Method, resolve_config
from capaboost_core.modes import unload
from capaboost_core.wrappers import unwrap
from capaboost_vision.roles import roles_of


def inject(model: nn.Module, config: Method | dict[str, Any] | str) -> nn.Module:
    """Adapt a timm model in place; `timm.create_model(..., capaboost=config)` calls this.

    Args:
        model: A timm model of a supported family.
        config: A configuration, a dict of its settings, or a preset name such as `capaboost-lora`.

    Raises:
        UserError: If the configuration or the model's class is not supported.
    """
    config = resolve_config(config)
    return inject_plan(model, config, config.plan(model, roles_of(model)))


class Entrypoints(dict):
    """timm's registry of functions that make models; each is wrapped on its entry, so that it takes `capaboost`."""

    def __setitem__(self, name: str, entrypoint: Callable[..., nn.Module]) -> None:
        wrapped = hasattr(entrypoint, "takes_capaboost")
        super().__setitem__(name, entrypoint if wrapped else _taking_capaboost(entrypoint))


def register_all() -> None:
    """Wrap every model that timm has registered or will register, so that it takes `capaboost`.

    Wrapping the registered functions, not `create_model`, also reaches code that imported the latter before.
    """
    entrypoints = Entrypoints()
    for name, entrypoint in _registry._model_entrypoints.items():
        entrypoints[name] = entrypoint
    _registry._model_entrypoints = entrypoints


def write_mergeable() -> None:
    """Have timm's `save_for_hf` and `push_to_hf_hub` write an adapted model with its delta weights merged.

    timm's loader knows its own parameters only. `save_config_for_hf` is wrapped, the last step of both, so that code
    which imported them before is reached as well: it writes the weights that were just written once more.
    """
    if not hasattr(_hub.save_config_for_hf, "merges"):
        _hub.save_config_for_hf = _merging(_hub.save_config_for_hf)


def _merging(save_config: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save_config)
    def save(model: nn.Module, config_path: str, *args: Any, **kwargs: Any) -> None:
        if find_injection(model):
            model = _merged_files(model, Path(config_path).parent)
        save_config(model, config_path, *args, **kwargs)

    cast(Any, save).merges = True
    return save


def _merged_files(model: nn.Module, folder: Path) -> nn.Module:
    """Write a merged copy of the model in place of the weights that timm has just written, and return it."""
    files = {folder / _hub.HF_SAFE_WEIGHTS_NAME: save_file, folder / _hub.HF_WEIGHTS_NAME: torch.save}
    written = {path: save for path, save in files.items() if path.exists()}
    try:
        plain = unload(copy.deepcopy(model))
    except UserError as error:
        for path in written:
            path.unlink()
        raise UserError(
            f"timm could not load this model ({error}); save_adapter(model, folder), or capaboost push for the hub"
        ) from error
    for path, save in written.items():
        save(plain.state_dict(), path)
    return plain


def _within(features: nn.Module) -> nn.Module:
    """The model in what `features_only=True` makes."""
    model = unwrap(features)
    if model is features:
        raise UserError(
            f"features_only=True makes a {type(features).__name__}, which takes the model apart; leave it out, and "
            "call model.forward_intermediates(x) of the adapted model"
        )
    return model


def _taking_capaboost(entrypoint: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(entrypoint)
    def create(
        pretrained: bool = False,
        capaboost: Method | dict[str, Any] | str | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        config = None if capaboost is None else resolve_config(capaboost)
        model = entrypoint(pretrained=pretrained, **kwargs)
        if config is not None:
            inject(_within(model) if kwargs.get("features_only") else model, config)
        return model

    cast(Any, create).takes_capaboost = True
    return create
