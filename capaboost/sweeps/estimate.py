"""How long a run takes, before it is run: by its multiply-adds, and by how fast finished runs did theirs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from capaboost.subjects import Sizes, make_subject
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.runs import Run
from capaboost.sweeps.sizes import rows_of
from capaboost.sweeps.work import command_of, options_of
from capaboost_core.errors import UserError
from capaboost_core.report.flop_modes import dispatched_products

SETUP_SECONDS = 5.0  # of a run beside its steps: data, model, checkpoints, adapter; about those of the embedded digits


@dataclass
class Estimator:
    """Seconds of a run: its multiply-adds over a speed, and its set-up.

    A text counts with its full `max_length`; batches of shorter texts take less, so this is an upper bound until
    runs of the same task have finished.

    Attributes:
        speed: Multiply-adds a second, where none of the sweep's runs has finished.
        finished: Runs of the sweep that may have a result.
        settings: Of runs, by name, as far as they were asked for.
        works: Their multiply-adds.
        steps: Multiply-adds of a training step and of a forward pass of one row, by model and method.
        speeds: Median multiply-adds a second of the runs that have finished, by task, and of all of them by None.
    """

    folder: SweepFolder
    speed: float
    finished: list[Run] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    works: dict[str, int] = field(default_factory=dict)
    steps: dict[tuple[Any, ...], tuple[int, int]] = field(default_factory=dict)
    speeds: dict[str | None, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.measure()

    def seconds(self, run: Run) -> float:
        """Measured of a run that has finished; else by the runs of its task, else by those of all, else by `speed`."""
        if self.folder.is_done(run):
            return self.folder.result(run)["wall_seconds"]
        return SETUP_SECONDS + self.work(run) / self.speeds.get(run.task, self.speeds.get(None, self.speed))

    def measure(self) -> None:
        """Take the speed, in multiply-adds a second, of each run that has finished by now."""
        of_task: dict[str | None, list[float]] = {}
        for run in filter(self.folder.is_done, self.finished):
            speed = self.work(run) / _without_set_up(max(self.folder.result(run)["wall_seconds"], 1e-3))
            for task in (run.task, None):
                of_task.setdefault(task, []).append(speed)
        self.speeds = {task: statistics.median(speeds) for task, speeds in of_task.items()}

    def work(self, run: Run) -> int:
        """Multiply-adds of the run: forward and backward in training, forward on the rows to test on."""
        if run.name not in self.works:
            settings = self.settings_of(run)
            step, forward = self._step(settings)
            train, test = rows_of(run.task, getattr(settings.data, "max_train_rows", None))
            tested = test * forward if settings.train.test else 0
            self.works[run.name] = settings.train.epochs * train * step + tested
        return self.works[run.name]

    def settings_of(self, run: Run) -> Any:
        """The run's settings as its command reads them.

        Raises:
            UserError: If one is wrong; it names the run.
        """
        if run.name not in self.settings:
            try:
                self.settings[run.name] = command_of(run).load(options_of(run))
            except UserError as error:
                raise UserError(f"{run.name}: {error}") from error
        return self.settings[run.name]

    def _step(self, settings: Any) -> tuple[int, int]:
        """Multiply-adds of one row: of a training step, and of a forward pass."""
        model, size = settings.model.name, getattr(settings.model, "img_size", None)
        length = getattr(settings.data, "max_length", None)
        adapter = settings.adapter.model_dump(exclude={"seed", "alpha", "scaling"})  # which change no product
        key = (model, size, length, settings.adapter.name, str(adapter))
        if key not in self.steps:
            subject = _subject(model, Sizes(1, length, size))
            adapted = subject.inject(subject.build(), settings.adapter)
            self.steps[key] = dispatched_products(adapted, subject.inputs)
        return self.steps[key]


def _without_set_up(seconds: float) -> float:
    """Of a run of so many; at least half of a short one is taken to be its steps."""
    return max(seconds - SETUP_SECONDS, seconds / 2)


_subject = cache(make_subject)  # one for all methods, as a subject copies the model that it built first


def measured_speed() -> float:
    """Multiply-adds a second of this device: those of a square product in its fast precision, half of which a model
    of many small operators reaches.
    """
    import torch

    from capaboost_core.training.precision import has_native_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, dtype = 1024 if device.type == "cpu" else 8192, torch.bfloat16 if has_native_bf16(device) else torch.float32
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return size**3 / min(seconds) / 2
