"""Whether files can be written, checked before the work that fills them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from capaboost_core.errors import UserError, shown
from capaboost_core.files import check_target


def check_outputs(flag: str, *paths: Path | None) -> None:
    """Try to write next to each path, or in the nearest existing folder above it; no file is left.

    Raises:
        UserError: If a path is a folder or cannot be written; it names the flag.
    """
    for path in paths:
        if path is None:
            continue
        try:
            check_target(path)
            _try_name(path)
            _try_folder(path.parent)
        except (OSError, ValueError) as error:  # the second for a name with a NUL, or none
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{flag} {shown(str(path))} cannot be written ({reason}); give another path") from error


def _try_name(path: Path) -> None:
    """Raise the system's error for a name that is too long, or whose parent is a file."""
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)


def _try_folder(folder: Path) -> None:
    while not os.path.lexists(folder):
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass
