"""Saves the adapter when transformers' `save_pretrained` writes an adapted model."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from capaboost_core.wrappers import is_sharded, named_modules, strip_wrappers

FOLDER = "capaboost_adapter"  # within the folder of the model, where peft would read `adapter_config.json`


class AdapterBesideWarning(UserWarning):
    """The files that a library saved of an adapted model lack the adapter, which is in a folder beside them."""


class SavesAdapter:
    """`save_pretrained` of an adapted model of transformers, which its Trainer also calls for each checkpoint.

    The library's files hold all tensors, but its classes read only the base and the head from them. So the adapter is
    saved into a separate folder, for `load_adapter`. Sharded weights are taken from the state dict that Trainer and
    accelerate gather for the first process; without one the warning says what to call.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, save_directory: str | Path, *args: Any, **settings: Any) -> Any:
        state = dict(settings.get("state_dict") or {})  # a copy, as the library empties the argument
        of_class: Any = type(self.model)
        result = of_class.save_pretrained(self.model, save_directory, *args, **settings)
        if settings.get("is_main_process", True) and hasattr(self.model, "capaboost"):
            warnings.warn(self._save(Path(save_directory), state), AdapterBesideWarning, stacklevel=2)
        return result

    def _save(self, directory: Path, state: Mapping[str, Tensor]) -> str:
        """Write the adapter if possible.

        Returns:
            How to load what was written, or how to save the adapter.
        """
        with gathered(self.model, state):
            if any(map(is_sharded, self.model.parameters())):
                return (
                    f"{directory} lacks the adapter, whose weights are sharded; call save_adapter(model, folder) on "
                    "all processes, or give state_dict=accelerator.get_state_dict(model)"
                )
            # Imported here, since `save` imports `injection`, which attaches this class to a model.
            save = importlib.import_module("capaboost_core.adapter_files.save")
            folder = save.save_adapter(self.model, directory / FOLDER)
        others = getattr(self.model, "capaboost_adapters", None)
        others = f"; save {', '.join(others.inactive)} by save_adapter(model, folder, name=...)" if others else ""
        return (
            f"{directory} holds the base model and its head; the adapter is in {folder}, to be loaded into them by "
            f"load_adapter, or call unload(model) first to save the merged model{others}"
        )


@contextmanager
def gathered(model: nn.Module, state: Mapping[str, Tensor]) -> Generator[None]:
    """Within the context a model's sharded parameters are replaced by the complete values of a state dict."""
    values = {strip_wrappers(name): tensor for name, tensor in state.items() if not is_sharded(tensor)}
    sharded = [
        (module, name, parameter, values[path])
        for prefix, module in named_modules(model).items()
        for name, parameter in module.named_parameters(recurse=False)
        if is_sharded(parameter) and (path := f"{prefix}.{name}".lstrip(".")) in values
    ]
    try:
        for module, name, parameter, complete in sharded:
            setattr(module, name, nn.Parameter(complete, requires_grad=parameter.requires_grad))
        yield
    finally:
        for module, name, parameter, _ in sharded:
            setattr(module, name, parameter)
