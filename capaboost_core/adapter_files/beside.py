"""The adapter beside what a library writes of an adapted model by itself."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from capaboost_core.wrappers import is_sharded

FOLDER = "capaboost_adapter"  # within the library's; beside its files `adapter_config.json` would be taken for peft's


class AdapterBesideWarning(UserWarning):
    """What a library saved of an adapted model lacks the adapter, which lies in a folder beside it."""


class SavesAdapter:
    """`save_pretrained` of an adapted model of transformers', which its Trainer calls for each checkpoint too.

    The library's files hold all tensors, but its classes read the base and the head of them alone: the adapter goes
    into a folder of its own, for `load_adapter`. Of sharded weights one process alone cannot write it.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, save_directory: str | Path, *args: Any, **settings: Any) -> Any:
        done = type(self.model).save_pretrained(self.model, save_directory, *args, **settings)
        alone = settings.get("is_main_process", True) and not any(map(is_sharded, self.model.parameters()))
        if alone and hasattr(self.model, "capaboost"):
            save = importlib.import_module("capaboost_core.adapter_files.save")  # it needs what puts this here
            folder = save.save_adapter(self.model, Path(save_directory) / FOLDER)
            warnings.warn(
                f"{save_directory} holds the base model and its head; the adapter is in {folder}, to be loaded into "
                "them by load_adapter, or call unload(model) first to save the merged model",
                AdapterBesideWarning,
                stacklevel=2,
            )
        return done
