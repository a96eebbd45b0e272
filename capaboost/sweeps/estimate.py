"""What is computed of a sweep before it runs: sizes within its budget, and the time of each run.

A run's time follows from its multiply-adds, and from how fast finished runs did theirs.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from capaboost.budget import subject_of
from capaboost.console import tell
from capaboost.report.counting import dispatched_products
from capaboost.report.models import Sizes, make_subject
from capaboost.report.sizes import describe_budget, refuse_given, solve
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.runs import Run, final_runs, groups
from capaboost.sweeps.sweep_file import SweepFile, Values
from capaboost_core.errors import UserError

# Test rows of VTAB-1k, whose training rows are 1,000 (google-research/task_adaptation, and the data sets' own pages).
VTAB_TEST_ROWS = {
    "caltech101": 6084, "cifar": 10000, "dtd": 1880, "oxford_flowers102": 6149, "oxford_iiit_pet": 3669, "svhn": 26032,
    "sun397": 21750, "patch_camelyon": 32768, "eurosat": 5400, "resisc45": 6300, "diabetic_retinopathy": 42670,
    "clevr_count": 15000, "clevr_dist": 15000, "dmlab": 22735, "kitti": 711, "dsprites_loc": 73728,
    "dsprites_ori": 73728, "smallnorb_azi": 12150, "smallnorb_ele": 12150, "digits": 797,
}  # fmt: skip
# Rows to train on and of dev (Wang et al., 2019; Rajpurkar et al., 2016 and 2018).
TEXT_ROWS = {
    "cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "qqp": (363846, 40430),
    "mnli": (392702, 19647), "qnli": (104743, 5463), "rte": (2490, 277), "squad_v1": (87599, 10570),
    "squad_v2": (130319, 11873),
}  # fmt: skip
DEFAULT_ROWS = (1000, 2000)


def rows_of(task: str, most: int | None) -> tuple[int, int]:
    """Rows to train on, at most so many, and to test on."""
    train, test = (1000, VTAB_TEST_ROWS[task]) if task in VTAB_TEST_ROWS else TEXT_ROWS.get(task, DEFAULT_ROWS)
    return min(train, most or train), test


def within_budget(sweep: SweepFile) -> SweepFile:
    """The sweep with each method at the size that comes nearest to its budget, reported in a line each.

    Sizes are those for the model of the first task. Without a budget the sweep is returned as it is. A method that has
    no size setting takes part unchanged, and so does one whose own settings in the file give it.

    Raises:
        UserError: If a setting is wrong, the budget is no number, or a size is given for all methods.
    """
    if sweep.budget is None:
        return sweep
    task, varied = next(iter(sweep.tasks)), next(iter(sweep.varied))
    methods = {name: _settings(sweep, sweep.budget, (task, name, varied)) for name in sweep.methods}
    return sweep.replace(methods=methods, budget=None, nearest=False)


def judged_alike(sweep: SweepFile) -> SweepFile:
    """The sweep whose tuning runs are judged by the epoch that its final runs test, where the file does not say.

    Raises:
        UserError: If a setting is wrong.
    """
    if sweep.tune is None or sweep.tune.epoch is not None:
        return sweep
    settings = final_runs(sweep, groups(sweep)[0], {})[0].load()
    selects = settings.data.protocol == settings.selecting and settings.train.select is None
    return sweep.replace(tune=sweep.tune.replace(epoch="best" if selects else "last"))


def largest_model(sweep: SweepFile) -> float:
    """Parameters of the largest frozen model of a sweep; infinite where one cannot be built without its files.

    Raises:
        UserError: If a setting is wrong.
    """
    sections = [final_runs(sweep, group, {})[0].load().model for group in groups(sweep)]
    try:
        return max(
            _parameters(name, size) for name, size in {(s.name, getattr(s, "img_size", None)) for s in sections}
        )
    except UserError:
        return math.inf


def _parameters(model: str, size: int | None) -> int:
    return sum(parameter.numel() for parameter in _subject(model, Sizes(1, None, size)).build().parameters())


def _settings(sweep: SweepFile, budget: str, group: tuple[str, ...]) -> Values:
    own = sweep.methods[group[1]]
    run = final_runs(sweep, group, {})[0]
    settings = run.load()
    try:
        size_field = settings.adapter.budget
        if size_field is None:
            tell(f"budget: {group[1]} has no size setting and takes part as it is")
            return own
        if f"adapter.{size_field}" in own:
            tell(f"budget: {group[1]} keeps its own {size_field}, {own[f'adapter.{size_field}']}")
            return own
        refuse_given(settings.adapter, {**run.values, **(sweep.tune.grid if sweep.tune else {})})
        found = solve(subject_of(settings), settings.adapter, budget, sweep.nearest)
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from error
    tell(describe_budget(found))
    return own | {f"adapter.{size_field}": getattr(found.method, size_field)}


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
            self.settings[run.name] = run.load()
        return self.settings[run.name]

    def _step(self, settings: Any) -> tuple[int, int]:
        """Multiply-adds of one row: of a training step, and of a forward pass."""
        model, size = settings.model.name, getattr(settings.model, "img_size", None)
        length = getattr(settings.data, "max_length", None)
        adapter = settings.adapter.model_dump(exclude={"seed", "alpha", "scaling"})  # which change no product
        head = getattr(settings, "head", None)
        key = (model, size, length, head, settings.adapter.name, str(adapter))
        if key not in self.steps:
            subject = _subject(model, Sizes(1, length, size, head=head))
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

    from capaboost.training.optimize import has_native_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, dtype = 1024 if device.type == "cpu" else 8192, torch.bfloat16 if has_native_bf16(device) else torch.float32
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return size**3 / min(seconds) / 2
