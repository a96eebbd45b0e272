"""What a sweep reads: its file, and the files and folders that its runs name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capaboost.shipped import shipped
from capaboost_core.errors import UserError
from capaboost_core.settings.base import hint


def file_of(name: Path) -> Path:
    """The file of a path, or of the name of a shipped sweep.

    Raises:
        UserError: If it is neither.
    """
    files = {path.stem: path for path in sorted((shipped("configs") / "sweeps").glob("*.yaml"))}
    if str(name) in files:
        return files[str(name)]
    if not name.exists():
        raise UserError(f"there is no file {name}, and no shipped sweep of this name; {hint(name, files)}")
    return name


def check_inputs(settings: Any) -> None:
    """Refuse a file or folder that is missing, of which else every run would fail by itself.

    Args:
        settings: Of a run, as its command reads them.

    Raises:
        UserError: It names the setting.
    """
    named = {"model.weights": getattr(settings.model, "weights", None), "data.dir": settings.data.dir}
    if getattr(settings.data, "source", None) == "tfds":  # which makes its folder
        del named["data.dir"]
    for key, path in named.items():
        if path and not Path(path).exists():
            raise UserError(f"{key}: {path} does not exist, seen from {Path.cwd()}")
