"""Data sets from the hub, and whether the hub can be reached."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import constants

from capaboost_core.errors import UserError, is_no_memory, reason_of
from capaboost_core.network import offline_unless_reachable


def reach_hub(name_or_path: str | Path, *modules: ModuleType) -> AbstractContextManager[None]:
    """Within it the hub's client fails at once if the hub does not answer; nothing is asked for a folder.

    Args:
        name_or_path: What is loaded.
        *modules: Those that keep a switch of their own beside that of `huggingface_hub`.
    """
    local = Path(name_or_path).is_dir()
    return nullcontext() if local else offline_unless_reachable(constants.ENDPOINT, constants, *modules)


def load_from_hub(name: str, *config: str, split: str, otherwise: str) -> Any:
    """A split as a `datasets.Dataset`; a folder of the same name below the current one goes before the hub.

    Args:
        name: The repository, such as `nyu-mll/glue`.
        *config: The configuration within it, where it has several.
        split: The hub's name of the split.
        otherwise: What the user can do without the hub.

    Raises:
        UserError: If it cannot be had.
    """
    from datasets import config as settings  # takes a second, and is needed for no local file
    from datasets import load_dataset

    try:
        with reach_hub(name, settings):
            return load_dataset(name, *config, split=split)
    except Exception as error:  # its network layers raise errors of many libraries
        if is_no_memory(error):
            raise
        raise UserError(
            f"cannot load {' '.join((name, *config))} from the hub ({reason_of(error)}); {otherwise}"
        ) from error
