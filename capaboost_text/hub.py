"""Data sets from the hub."""

from __future__ import annotations

from typing import Any

from capaboost_core.errors import UserError


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
    from datasets import load_dataset  # takes a second, and is needed for no local file

    try:
        return load_dataset(name, *config, split=split)
    except Exception as error:  # its network layers raise errors of many libraries
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load {' '.join((name, *config))} from the hub ({reason}); {otherwise}") from error
