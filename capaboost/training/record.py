"""What a run shows and writes while it trains: a progress bar, metrics.jsonl, TensorBoard logs, checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from capaboost.console import tell
from capaboost.training.checkpoint import Checkpoints, State
from capaboost.training.run_folder import METRICS, TENSORBOARD, to_json
from capaboost_core.files import explained, write_atomically

READING_SECONDS = 1.0  # between two readings of the loss


class LossReading:
    """A loss that is read about once a second without making the host wait for the device."""

    def __init__(self, device: torch.device):
        self.event = torch.cuda.Event() if device.type == "cuda" else None
        self.host = torch.zeros((), pin_memory=self.event is not None)
        self.offered = -READING_SECONDS

    def offer(self, loss: Tensor) -> None:
        """Start a copy of the loss, unless the last one is recent or still in progress."""
        now = time.monotonic()
        if now - self.offered < READING_SECONDS or not self.ready():
            return
        self.offered = now
        self.host.copy_(loss, non_blocking=self.event is not None)
        if self.event is not None:
            self.event.record()

    def ready(self) -> bool:
        return self.event is None or self.event.query()


class Progress:
    """A bar over all examples of the run: loss, examples a second, and the time left."""

    def __init__(self, epochs: int, examples: int, done: int, unit: str, device: torch.device, shown: bool):
        self.epochs, self.reading, self.metrics = epochs, LossReading(device), {}
        self.bar = tqdm(
            total=epochs * examples,
            initial=done,
            unit=f" {unit}",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not shown,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def start_epoch(self, epoch: int) -> None:
        self.bar.set_description(f"epoch {epoch + 1}/{self.epochs}", refresh=False)

    def advance(self, examples: int, loss: Tensor) -> None:
        self.reading.offer(loss)
        if self.reading.ready():
            self.bar.set_postfix({"loss": f"{float(self.reading.host):.4f}", **self.metrics}, refresh=False)
        self.bar.update(examples)

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Show an epoch's metrics until the next has its own."""
        self.metrics = {name: f"{value:.2f}" for name, value in metrics.items() if value is not None}
        self.bar.set_postfix({"loss": f"{float(self.reading.host):.4f}", **self.metrics})

    def close(self) -> None:
        self.bar.close()


class MetricsFile:
    """`metrics.jsonl`: one JSON object for each finished epoch."""

    def __init__(self, path: Path):
        self.path = path

    def cut(self, epochs: int, last: dict[str, Any]) -> None:
        """Keep only the complete lines of the first epochs: a resumed run writes the later ones again.

        Args:
            epochs: How many.
            last: What the run knows of the last of them, if its line is lost.
        """
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = {line.get("epoch"): line for line in map(_parsed, text.splitlines())}
        kept = [lines[epoch] for epoch in range(1, epochs + 1) if epoch in lines]
        if epochs and epochs not in lines:
            kept.append(last)
        content = "".join(to_json(line) + "\n" for line in kept)
        write_atomically(self.path, lambda file: file.write(content.encode()))

    def add(self, values: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
        with explained("write", self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(to_json(values) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any]:
    """The line's values; none if a crash has truncated it."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


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
            logged = {key: value for key, value in values.items() if key != "epoch"}
            self.accelerator.log(logged, step=int(values["epoch"]))

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
        """TensorBoard's logs repeat metrics.jsonl, so a run goes on where they cannot be written, with one warning."""
        try:
            yield
        except OSError as error:
            if not self.warned:
                self.warned = True
                tell(f"warning: cannot write {self.folder / TENSORBOARD}: {error.strerror}; {METRICS} has all metrics")
