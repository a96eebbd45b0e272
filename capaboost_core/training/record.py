"""The files that a run writes while it trains: metrics.jsonl, TensorBoard logs, checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from capaboost_core.console import tell
from capaboost_core.training.checkpoint import Checkpoints, State
from capaboost_core.training.progress import MetricsFile
from capaboost_core.training.run_folder import METRICS, TENSORBOARD


class Record:
    """The files of a run in progress; the main process writes them.

    Nothing is written before the first checkpoint.
    """

    def __init__(self, accelerator: Accelerator, folder: Path):
        self.accelerator, self.folder = accelerator, folder
        self.checkpoints, self.metrics = Checkpoints(folder), MetricsFile(folder / METRICS)
        self.tracks = self.warned = False

    def start(self, done: int, last: dict[str, float]) -> None:
        """Drop what a stopped run wrote after its last finished epoch, whose metrics are `last`."""
        if self.accelerator.is_main_process:
            self.metrics.cut(done, last)

    def line(self, values: dict[str, float]) -> None:
        """An epoch's metrics. They are written before its checkpoint: a resumed run drops surplus lines."""
        if self.accelerator.is_main_process:
            self.metrics.add(values)
            (self.folder / TENSORBOARD).mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
        with self._spared():
            if not self.tracks:
                options = {TENSORBOARD: {"purge_step": values["epoch"]}}
                self.accelerator.init_trackers(TENSORBOARD, init_kwargs=options)
                self.tracks = True
            self.accelerator.log({key: value for key, value in values.items() if key != "epoch"}, step=values["epoch"])

    def save(self, state: State) -> None:
        if self.accelerator.is_main_process:
            self.checkpoints.save(state)

    def close(self) -> None:
        if self.tracks:
            for tracker in self.accelerator.trackers:  # not end_training, which would end the processes' group too
                with self._spared():
                    tracker.finish()

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        """TensorBoard's logs repeat metrics.jsonl: a run goes on where they cannot be written, which is said once."""
        try:
            yield
        except OSError as error:
            if not self.warned:
                self.warned = True
                tell(f"warning: cannot write {self.folder / TENSORBOARD}: {error.strerror}; {METRICS} has all metrics")
