"""TensorFlow Datasets, read without TensorFlow from data prepared as array_record."""

from __future__ import annotations

import bisect
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import numpy as np

from capaboost_core.errors import UserError, reason_of
from capaboost_core.extras import install_line
from capaboost_core.network import is_reachable
from capaboost_vision.vtab import VtabTask

ARCHIVES = "https://storage.googleapis.com"  # most of what is downloaded; if it is out of reach, all is tried once


class TfdsSplit:
    """A split of a task; data that is not on disk yet is prepared first, if possible.

    Raises:
        UserError: If it cannot be prepared: it says whether TensorFlow, a manual download or the
            network is lacking.
    """

    def __init__(self, task: VtabTask, split: str, data_dir: str | Path | None):
        self.task = task
        builder = _prepared_builder(task, data_dir)
        self.note = _note(task, builder)
        try:
            self.parts = [builder.as_data_source(split=part) for part in task.splits(split)]
        except NotImplementedError as error:
            raise UserError(
                f"{builder.data_dir} holds {task.builder} as {builder.info.file_format.value}, which cannot be read "
                "here; move it away, so that it is prepared again as array_record, or pass another --data-dir"
            ) from error
        self.ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        part = bisect.bisect_right(self.ends, index)
        example = self.parts[part][index - (self.ends[part - 1] if part else 0)]
        return self.task.image(example), self.task.label(example)


def _prepared_builder(task: VtabTask, data_dir: str | Path | None):
    """The first of VTAB-1k's version and the installed package's that is prepared; else the first there is."""
    import tensorflow_datasets  # takes two seconds, which the other sources spare

    builders = []
    for name in (f"{task.builder}:{task.version}", task.builder) if task.version else (task.builder,):
        try:
            builders.append((name, tensorflow_datasets.builder(name, data_dir=data_dir)))
        except AssertionError:  # the installed package has this version no more
            continue
    name, builder = next((found for found in builders if found[1].is_prepared()), builders[0])
    if not builder.is_prepared():
        # only now: asking for a format where data of another one is on disk raises
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
        _prepare(builder, task.builder)
    return builder


def _note(task: VtabTask, builder) -> str:
    """Which rows these are: VTAB-1k's only in the version whose order made them."""
    version = f"{task.builder} {builder.version}"
    if task.version is None or builder.version.match(task.version):
        return f"official VTAB-1k rows, {version}"
    return f"rows of {version}; VTAB-1k's are of {task.version}"


def _prepare(builder, name: str) -> None:
    from tensorflow_datasets.core.download import downloader

    if find_spec("tensorflow") is None:  # builders notice only after the download, or minutes of retries
        raise UserError(
            f"{name} is not in {builder.data_dir}, and preparing it needs TensorFlow; "
            f"{install_line('prepare')} and run again, or pass --data-dir or --source folder"
        )
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
            "or pass --data-dir with prepared data, or --source folder"
        ) from error
