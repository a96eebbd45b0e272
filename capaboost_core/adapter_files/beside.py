"""The adapter beside what a library writes of an adapted model by itself."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from capaboost_core.wrappers import is_sharded, strip_wrappers

FOLDER = "capaboost_adapter"  # within the library's; beside its files `adapter_config.json` would be taken for peft's


class AdapterBesideWarning(UserWarning):
    """What a library saved of an adapted model lacks the adapter, which lies in a folder beside it."""


class SavesAdapter:
    """`save_pretrained` of an adapted model of transformers', which its Trainer calls for each checkpoint too.

    The library's files hold all tensors, but its classes read the base and the head of them alone: the adapter goes
    into a folder of its own, for `load_adapter`. Sharded weights are taken from the state dict that Trainer and
    accelerate gather for the first process; without one the warning says what to call.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, save_directory: str | Path, *args: Any, **settings: Any) -> Any:
        state = dict(settings.get("state_dict") or {})  # the library empties what it is given
        done = type(self.model).save_pretrained(self.model, save_directory, *args, **settings)
        if settings.get("is_main_process", True) and hasattr(self.model, "capaboost"):
            warnings.warn(self._save(Path(save_directory), state), AdapterBesideWarning, stacklevel=2)
        return done

    def _save(self, directory: Path, state: Mapping[str, Tensor]) -> str:
        """Write the adapter, if it can be; returns what to do with the files."""
        with gathered(self.model, state):
            if any(map(is_sharded, self.model.parameters())):
                return (
                    f"{directory} lacks the adapter, whose weights are sharded; call save_adapter(model, folder) on "
                    "all processes, or give state_dict=accelerator.get_state_dict(model)"
                )
            save = importlib.import_module("capaboost_core.adapter_files.save")  # it needs what puts this here
            folder = save.save_adapter(self.model, directory / FOLDER)
        return (
            f"{directory} holds the base model and its head; the adapter is in {folder}, to be loaded into them by "
            "load_adapter, or call unload(model) first to save the merged model"
        )


@contextmanager
def gathered(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Put the complete values of a state dict in the place of a model's sharded parameters for a while."""
    values = {strip_wrappers(name): tensor for name, tensor in state.items() if not is_sharded(tensor)}
    sharded = [
        (module, name, parameter, values[path])
        for prefix, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
        and is_sharded(parameter)
        and (path := strip_wrappers(f"{prefix}.{name}" if prefix else name)) in values
    ]
    try:
        for module, name, parameter, complete in sharded:
            module._parameters[name] = nn.Parameter(complete, requires_grad=parameter.requires_grad)
        yield
    finally:
        for module, name, parameter, _ in sharded:
            module._parameters[name] = parameter
