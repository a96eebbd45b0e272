"""The sets of VTAB-1k from TensorFlow Datasets: reading what is prepared, and preparing it once."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from capaboost_core.errors import UserError, reason_of
from capaboost_core.network import is_reachable
from capaboost_vision.vtab.tasks import VtabTask

ARCHIVES = "https://storage.googleapis.com"  # most of what is downloaded; if it is out of reach, all is tried once


class TfdsSplit:
    """A split of a task of TensorFlow Datasets, read without TensorFlow from data prepared as array_record.

    Raises:
        UserError: If the data is not prepared, or in another format.
    """

    def __init__(self, task: VtabTask, split: str, data_dir: str | Path | None):
        self.task = task
        _, builder = _builder(task, data_dir)
        if not _is_prepared(builder):
            raise UserError(
                f"{task.builder} is not in {builder.data_dir}; prepare it once by "
                f"`{prepare_line(task.builder, data_dir)}`, or pass --data-dir with prepared data, or --source folder"
            )
        self.note = _note(task, builder)
        try:
            self.parts = [builder.as_data_source(split=part) for part in task.splits(split)]
        except NotImplementedError as error:
            raise UserError(
                f"{builder.data_dir} holds {task.builder} as {builder.info.file_format.value}, which cannot be read "
                "here; move it away, and prepare it again as array_record by "
                f"`{prepare_line(task.builder, data_dir)}`, or pass another --data-dir"
            ) from error
        self.ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        part = bisect.bisect_right(self.ends, index)
        example = self.parts[part][index - (self.ends[part - 1] if part else 0)]
        return self.task.image(example), self.task.label(example)


def prepare_line(builder: str, data_dir: str | Path | None) -> str:
    """The command that prepares a set; it takes the names of sets and of tasks."""
    flag = "" if data_dir is None else f" --data-dir {data_dir}"
    return f"capaboost prepare-vtab {builder.partition('/')[0]}{flag}"


def _builder(task: VtabTask, data_dir: str | Path | None) -> tuple[str, Any]:
    """Name and builder of VTAB-1k's version or the installed package's: the first that is prepared, or that exists."""
    import tensorflow_datasets  # takes two seconds, which the other sources spare

    builders = []
    for name in (f"{task.builder}:{task.version}", task.builder) if task.version else (task.builder,):
        try:
            builders.append((name, tensorflow_datasets.builder(name, data_dir=data_dir)))
        except AssertionError:  # the installed package has this version no more
            continue
    return next((found for found in builders if _is_prepared(found[1])), builders[0])


def _is_prepared(builder: Any) -> bool:
    with _silent():  # it logs a warning for each folder that lacks a file
        return builder.is_prepared()


@contextmanager
def _silent() -> Iterator[None]:
    from absl import logging  # what tensorflow_datasets logs with

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _note(task: VtabTask, builder: Any) -> str:
    """Which rows these are: VTAB-1k's only in the version whose order made them."""
    version = f"{task.builder} {builder.version}"
    if task.version is None or builder.version.match(task.version):
        return f"official VTAB-1k rows, {version}"
    return f"rows of {version}; VTAB-1k's are of {task.version}"


def prepare(task: VtabTask, data_dir: str | Path | None) -> str:
    """Download a task's set and write it as array_record, unless it is there.

    Returns:
        Where it is, and which rows its splits are.

    Raises:
        UserError: If a package, a manual download or the network is lacking.
    """
    import tensorflow_datasets

    name, builder = _builder(task, data_dir)
    if not _is_prepared(builder):
        # only now: asking for a format where data of another one is on disk raises
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
        _download(builder, task.builder)
    return f"{builder.data_dir} ({_note(task, builder)})"


def _download(builder: Any, name: str) -> None:
    from tensorflow_datasets.core.download import downloader

    if not is_reachable(ARCHIVES):
        downloader.MAX_RETRIES = 0
    try:
        builder.download_and_prepare()
    except Exception as error:  # builders fail in many ways
        message = reason_of(error, 600)
        if message.startswith("Manual directory"):  # where to put the files, and the builder's instructions
            raise UserError(f"{name} must be downloaded by hand; {message}") from error
        if isinstance(error, ImportError):
            raise UserError(f"preparing {name} needs a package ({message}); install it and run again") from error
        raise UserError(
            f"{name} is not in {builder.data_dir}, and could not be prepared ({message}); go online, "
            "or pass --data-dir with prepared data"
        ) from error
