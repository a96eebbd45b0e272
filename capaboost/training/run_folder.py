"""A run's folder: the names of its files, JSON, the lock, and the checks before a run starts in it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaboost.training.processes import on_main
from capaboost_core.errors import UserError
from capaboost_core.extras import need
from capaboost_core.files import is_current, lock_now, read_text

if TYPE_CHECKING:
    from capaboost_core.methods import Method


CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
RESULT, METRICS, LOCK = "result.json", "metrics.jsonl", "run.lock"
ADAPTER, TENSORBOARD = "adapter", "tensorboard"
ANOTHER = "choose another --output-dir"
LARGEST = 1e300  # number that a JSON file may hold
_tracker: ContextVar[str] = ContextVar("tracker", default=TENSORBOARD)


def tracker() -> str:
    """Where metrics go beside metrics.jsonl."""
    return _tracker.get()


@contextlib.contextmanager
def tracked_by(name: str) -> Iterator[None]:
    """Within it runs report their metrics to TensorBoard, wandb, trackio or `none`.

    Raises:
        UserError: If its library is not installed.
    """
    if name not in (TENSORBOARD, "none"):
        need(name, name, "runs with --tracker")
    token = _tracker.set(name)
    try:
        yield
    finally:
        _tracker.reset(token)


def to_json(values: Any, indent: int | None = None) -> str:
    """The values as JSON; a number that is not finite, which JSON does not have, becomes null."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def worth(metric: str, value: float) -> float:
    """The value of a metric such that more is better: of perplexity, the one of which less is better, its negative."""
    return -value if metric.endswith("perplexity") else value


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a number that a float holds, and so neither infinite nor NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        with as_user_error(folder):
            for path in (*reversed(folder.parents), folder):
                if not path.exists():
                    path.mkdir(exist_ok=True)
                    made.append(path)
            return made, _lock(folder)
    except UserError:
        _remove_empty(made)
        raise


def _lock(folder: Path) -> tuple[int, int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock_now(descriptor):
            raise _in_use(folder)
        return _lock_file(folder), descriptor
    except BaseException:
        os.close(descriptor)
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
    for path in reversed(made):
        with contextlib.suppress(OSError):  # not empty: the run wrote something
            path.rmdir()


def run_folder(kind: str, task: str, model: str, adapter: Method, seed: int) -> Path:
    """The default folder of a run: runs/<kind>/<task>/<model>/<method>-seed<seed>."""
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in model)
    return Path("runs") / kind / task / plain / f"{adapter.label}-seed{seed}"


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that cannot hold the run, or in which it would overwrite another; nothing is written.

    Raises:
        UserError: If the folder cannot be used, or it holds a run and `resume` is off.
    """
    if folder == Path():
        raise UserError("the output folder is the working folder itself; name one, such as --output-dir runs/mine")
    with as_user_error(folder):
        _check_writable(folder)
        if (where := folder.resolve()) in Path.cwd().parents or where == Path(os.path.expanduser("~")).resolve():
            raise UserError(f"{where} holds your other folders; name one for the run, such as --output-dir runs/mine")
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
    with as_user_error(folder):
        disk = os.statvfs(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
        held = sum((folder / name).stat().st_size for name in (CHECKPOINT, PREVIOUS) if (folder / name).exists())
    free = disk.f_bavail * disk.f_frsize
    if free + held < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.1f} MB free, but two checkpoints and the adapter take about "
            f"{needed / 1e6:.1f} MB; free some space, or {ANOTHER}"
        )


def _check_writable(folder: Path) -> None:
    path = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not path.is_dir():
        what = "a link to nothing" if path.is_symlink() and not path.exists() else "no folder"
        raise UserError(f"{path} is {what}; {ANOTHER}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path} is not writable; {ANOTHER}")


@contextlib.contextmanager
def as_user_error(folder: Path) -> Iterator[None]:
    """Turn what the system refuses within it into a mistake in the folder.

    Raises:
        UserError: In place of OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}; {ANOTHER}") from error
