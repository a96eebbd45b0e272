"""The lock of a run's folder: one run at a time works in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from capaboost_core.errors import UserError
from capaboost_core.training.processes import on_main
from capaboost_core.training.run_folder import ANOTHER, LOCK, told


class InUse(UserError):
    """Another run holds the folder."""


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock until the block ends; where nothing was written, nothing is left.

    The main process holds an flock on `run.lock`. The lock ends with the process, however that dies; a file
    that is left by a killed one blocks nobody.

    Raises:
        UserError: In all processes, if the folder cannot be made or written, or another run holds it (InUse).
    """
    made, lock = on_main(lambda: _open(folder)) or ([], None)
    try:
        yield
    finally:
        if lock is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(lock)
        _remove_empty(made)


def _open(folder: Path) -> tuple[list[Path], int | None]:
    """The folders that had to be made, outermost first, and the descriptor that holds the lock."""
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


def _lock(folder: Path) -> int:
    while True:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise InUse(f"{folder} is in use by {holder}; wait until it ends, or {ANOTHER}") from error
        if _is_current(file, folder / LOCK):  # else its holder has just removed it: take the new one
            os.truncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return file
        os.close(file)


def _is_current(file: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False


def _remove_empty(made: list[Path]) -> None:
    for place in reversed(made):
        with contextlib.suppress(OSError):  # not empty: the run wrote something
            place.rmdir()
