"""A run's folder: its paths, what is there, whether the run is finished, and which process works in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capaboost_core.errors import UserError
from capaboost_core.methods import Method
from capaboost_core.training.processes import on_main

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
RESULT, METRICS, LOCK = "result.json", "metrics.jsonl", "run.lock"
ADAPTER, TENSORBOARD = "adapter", "tensorboard"
ANOTHER = "choose another --output-dir"


def run_folder(kind: str, task: str, model: str, adapter: Method, seed: int) -> Path:
    """Where a run lives unless told otherwise: runs/<kind>/<task>/<model>/<method>-seed<seed>."""
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in model)
    return Path("runs") / kind / task / plain / f"{adapter.label}-seed{seed}"


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that cannot hold the run, or in which it would overwrite another; nothing is written.

    Raises:
        UserError: If the folder cannot be used, or it holds a run and `resume` is off.
    """
    if folder == Path():
        raise UserError("the output folder is the working folder itself; name one, such as --output-dir runs/mine")
    with _told(folder):
        _check_place(folder)
        for name, is_right, kind in [(name, Path.is_dir, "folder") for name in (ADAPTER, TENSORBOARD)] + [
            (name, Path.is_file, "file") for name in (CHECKPOINT, PREVIOUS, RESULT, METRICS, LOCK)
        ]:
            part = folder / name
            if os.path.lexists(part) and not is_right(part):
                raise UserError(f"{part} must be a {kind}, but is none; move it away, or {ANOTHER}")
        present = [name for name in (CHECKPOINT, PREVIOUS, RESULT, METRICS) if (folder / name).exists()]
    if present and not resume:
        raise UserError(f"{folder} holds a run already ({present[0]}); pass --resume or another --output-dir")


def is_finished(folder: Path) -> bool:
    """Whether the run reached its result, which is written last."""
    return (folder / RESULT).is_file()


def check_space(folder: Path, needed: int) -> None:
    """Refuse a disk that could not hold the run's files.

    Args:
        folder: Where they go; what it holds already is replaced.
        needed: Bytes of two checkpoints and an adapter.

    Raises:
        UserError: If less is free.
    """
    with _told(folder):
        disk = os.statvfs(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
        held = sum((folder / name).stat().st_size for name in (CHECKPOINT, PREVIOUS) if (folder / name).exists())
    free = disk.f_bavail * disk.f_frsize
    if free + held < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.1f} MB free, but two checkpoints and the adapter take about "
            f"{needed / 1e6:.1f} MB; free some space, or {ANOTHER}"
        )


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock until the block ends; where nothing was written, nothing is left.

    The main process holds an flock on `run.lock`. The lock ends with the process, however that dies; a file
    that is left by a killed one blocks nobody.

    Raises:
        UserError: In all processes, if the folder cannot be made or written, or another run holds it.
    """
    made, lock = on_main(lambda: _open(folder)) or ([], None)
    try:
        yield
    finally:
        if lock is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(lock)
        _remove_empty(made)


def _check_place(folder: Path) -> None:
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        what = "a link to nothing" if place.is_symlink() and not place.exists() else "no folder"
        raise UserError(f"{place} is {what}; {ANOTHER}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} is not writable; {ANOTHER}")


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}; {ANOTHER}") from error


def _open(folder: Path) -> tuple[list[Path], int | None]:
    """The folders that had to be made, outermost first, and the descriptor that holds the lock."""
    made: list[Path] = []
    try:
        with _told(folder):
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
            raise UserError(f"{folder} is in use by {holder}; wait until it ends, or {ANOTHER}") from error
        if _is_current(file, folder / LOCK):  # else its holder has just removed it: take the new one
            os.truncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return file
        os.close(file)


def _is_current(file: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False


def _remove_empty(made: list[Path]) -> Any:
    for place in reversed(made):
        with contextlib.suppress(OSError):  # not empty: the run wrote something
            place.rmdir()
