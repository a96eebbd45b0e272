"""Folders that come with the package: settings files and the paper's tables."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from capaboost_core.errors import UserError


def shipped(name: str) -> Path:
    """`configs` or `results/paper`: in the package where it is installed, at the root of a checkout.

    Raises:
        UserError: If it is in neither of them.
    """
    package = Path(str(files("capaboost")))
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise UserError(
        f"the folder {name} of capaboost is missing; install capaboost again, or run in a complete checkout"
    )
