"""The lock of a run's folder: one run at a time works in it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from capaboost_core.errors import UserError
from capaboost_core.files import is_current, lock_now, read_text
from capaboost_core.training.processes import on_main
from capaboost_core.training.run_folder import ANOTHER, LOCK, told


class InUse(UserError):
    """Another run holds the folder."""


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock until the block ends; where nothing was written, nothing is left.

    The main process holds the lock of the folder and that of `run.lock`, which says who it is and which file systems
    know that cannot lock a folder. Both end with the process, however that dies; a file that is left by a killed one
    blocks nobody, and one that somebody deletes frees nothing.

    Raises:
        UserError: In all processes, if the folder cannot be made or written, or another run holds it (InUse).
    """
    made, locks = on_main(lambda: _open(folder)) or ([], ())
    try:
        yield
    finally:
        if locks and is_current(locks[0], folder / LOCK):  # else it is another run's by now
            (folder / LOCK).unlink(missing_ok=True)
        for lock in locks:
            os.close(lock)
        _remove_empty(made)


def _open(folder: Path) -> tuple[list[Path], tuple[int, ...]]:
    """The folders that had to be made, outermost first, and the descriptors that hold the locks, first the file's."""
    made: list[Path] = []
    try:
        with told(folder):
            for place in (*reversed(folder.parents), folder):
                if not place.exists():
                    place.mkdir(exist_ok=True)
                    made.append(place)
            return made, _lock(folder)
    except UserError:
        _remove_empty(made)
        raise


def _lock(folder: Path) -> tuple[int, int]:
    whole = os.open(folder, os.O_RDONLY)
    try:
        if not lock_now(whole):
            raise _in_use(folder)
        return _lock_file(folder), whole
    except BaseException:
        os.close(whole)
        raise


def _lock_file(folder: Path) -> int:
    while True:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        if not lock_now(file):
            os.close(file)
            raise _in_use(folder)
        if is_current(file, folder / LOCK):  # else its holder has just removed it: take the new one
            os.truncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return file
        os.close(file)


def _in_use(folder: Path) -> InUse:
    holder = "another process"
    with contextlib.suppress(OSError, ValueError):
        holder = read_text(folder / LOCK).strip()[:200] or holder
    return InUse(f"{folder} is in use by {holder}; wait until it ends, or {ANOTHER}")


def _remove_empty(made: list[Path]) -> None:
    for place in reversed(made):
        with contextlib.suppress(OSError):  # not empty: the run wrote something
            place.rmdir()
