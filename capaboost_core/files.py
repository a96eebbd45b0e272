"""Atomic writing of files, alone or several together."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from capaboost_core.errors import UserError

Write = Callable[[BinaryIO], object]
ADVICE = {
    "read": "choose a path that you may read",
    "write": "choose a folder that you may write to, with enough space",
}


def write_atomically(path: Path, write: Write) -> None:
    """Let `write` fill a temporary file in the folder of `path`, sync it, and rename it to `path`.

    Raises:
        UserError: If that fails; the old file is then unchanged, and no temporary file is left.
    """
    write_together({path: write})


def write_together(files: dict[Path, Write]) -> None:
    """Write several files of one folder: all are synced to the disk before the first is renamed.

    They are renamed in the order given. After a kill between two renames the later files are still complete, under
    the name that `partial_of` gives.

    Raises:
        UserError: If a file cannot be written; the old files are then unchanged, and no temporary file is left.
    """
    folder = next(iter(files)).parent
    placed = False
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for path, write in files.items():
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, f"{path.name} is a folder")
                _fill(partial_of(path), write)
            for path in files:
                os.replace(partial_of(path), path)
                placed = True
        except BaseException:
            for path in () if placed else files:
                with suppress(OSError):
                    partial_of(path).unlink(missing_ok=True)
            raise
        _sync_folder(folder)


def partial_of(path: Path) -> Path:
    """The temporary name of a file until it is complete."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def explained(verb: str, path: Path) -> Iterator[None]:
    """Turn an error of the operating system, such as a full disk or a read-only folder, into a one-line UserError.

    Args:
        verb: What was tried: read or write.
        path: The file or folder that the line names.

    Raises:
        UserError: In place of the OSError.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides the file's own error
        if not isinstance(cause, OSError):
            raise
        reason = "it is a file or a dangling link" if isinstance(cause, FileExistsError) else cause.strerror or cause
        raise UserError(f"cannot {verb} {path}: {reason}; {ADVICE[verb]}") from error


def _fill(path: Path, write: Write) -> None:
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new names, too, outlive a power cut
    finally:
        os.close(folder)
