"""A run's folder: its paths, what is there, and whether the run is finished."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from capaboost_core.errors import UserError

if TYPE_CHECKING:
    from capaboost_core.methods import Method

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
    with told(folder):
        _check_place(folder)
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
    with told(folder):
        disk = os.statvfs(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
        held = sum((folder / name).stat().st_size for name in (CHECKPOINT, PREVIOUS) if (folder / name).exists())
    free = disk.f_bavail * disk.f_frsize
    if free + held < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.1f} MB free, but two checkpoints and the adapter take about "
            f"{needed / 1e6:.1f} MB; free some space, or {ANOTHER}"
        )


def _check_place(folder: Path) -> None:
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        what = "a link to nothing" if place.is_symlink() and not place.exists() else "no folder"
        raise UserError(f"{place} is {what}; {ANOTHER}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} is not writable; {ANOTHER}")


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Within it, what the system refuses is a mistake in the folder.

    Raises:
        UserError: In place of OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}; {ANOTHER}") from error
