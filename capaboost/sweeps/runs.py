"""The runs of a sweep: which there are, where they live, and with which flags a command trains them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import yaml

from capaboost.runs.trainings import TRAININGS
from capaboost.sweeps.sweep_file import MASK_SEED, OWN_NAMES, SweepFile, Values, combinations, label
from capaboost.training.settings import merge_settings, nested
from capaboost_core.errors import UserError
from capaboost_core.methods import resolve_config
from capaboost_core.settings import parse_yaml

MODEL = "model.name"


@dataclass(frozen=True)
class Run:
    """One run of a training command.

    Attributes:
        name: Its folder below the sweep's.
        group: Task, method and the varied settings: what shares a choice of tuned settings.
        values: The settings by section.key that the sweep gives it, its seed not among them.
        tuning: Whether it only tunes: its test rows stay unseen.
    """

    name: str
    group: tuple[str, ...]
    command: str
    task: str
    preset: str
    seed: int
    values: Values
    tuning: bool = False

    @property
    def arguments(self) -> list[str]:
        """The command's flags, but for those of the folder."""
        training = TRAININGS[self.command]
        _, _, task_flag = training.task.partition(".")
        named = [] if training.is_positional else [f"--{task_flag}"]
        flags = [*named, self.task, "--method", self.preset, "--seed", str(self.seed)]
        values = self._assigned()
        if MODEL in values:  # as a flag, since it also chooses the settings file
            flags += ["--model", str(values.pop(MODEL))]
        return [*flags, *(part for key, value in values.items() for part in ("--set", f"{key}={_yaml(value)}"))]

    def load(self) -> Any:
        """The run's settings, which are those that its command reads from `arguments`.

        Raises:
            UserError: If one is wrong; it names the run.
        """
        training, values = TRAININGS[self.command], self._assigned()
        flags = {training.task: self.task, "train.seed": self.seed}
        flags |= {MODEL: values.pop(MODEL)} if MODEL in values else {}  # which also chooses the settings file
        typed = json.loads(json.dumps(values))  # with lists for tuples, as a file has them
        try:
            return training.load(merge_settings(nested(flags), nested(typed)), self.preset)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error

    def _assigned(self) -> Values:
        return self.values | ({"train.test": False} if self.tuning else {})


def groups(sweep: SweepFile) -> list[tuple[str, ...]]:
    """(task, method, varied settings) of all runs, in the file's order."""
    return [
        (task, method, varied)
        for task, method in itertools.product(sweep.tasks, sweep.methods)
        for varied in sweep.varied
    ]


def tuning_runs(sweep: SweepFile, group: tuple[str, ...], grid: dict[str, tuple[Any, ...]]) -> list[Run]:
    """The runs that choose a group's settings, by a grid that may be wider than the file's."""
    assert sweep.tune is not None
    chosen = combinations(grid)
    seeds = sweep.tune.seeds or sweep.seeds[:1]
    protocol = {"data.protocol": sweep.tune.protocol}
    protocol |= {} if sweep.tune.epoch == "best" else {"train.select": "last"}
    return [_run(sweep, group, seed, values | protocol, label(values)) for values in chosen for seed in seeds]


def final_runs(
    sweep: SweepFile, group: tuple[str, ...], tuned: Values, seeds: tuple[int, ...] | None = None
) -> list[Run]:
    """A group's run for each seed, the sweep's by default, with the settings that were chosen."""
    return [_run(sweep, group, seed, tuned) for seed in (sweep.seeds if seeds is None else seeds)]


def _run(sweep: SweepFile, group: tuple[str, ...], seed: int, own: Values, tuning: str = "") -> Run:
    task, method, of_group = group
    of_task, of_method = dict(sweep.tasks[task]), dict(sweep.methods[method])
    names = of_task.pop(OWN_NAMES["tasks"], task), of_method.pop(OWN_NAMES["methods"], method)
    folders = [*filter(None, group), *(["tune", tuning] if tuning else []), f"seed{seed}"]
    values = sweep.set | of_task | of_method | sweep.varied[of_group] | own
    if sweep.mask_seed and draws_by_seed(names[1], values):
        values |= {MASK_SEED: seed}
    return Run("/".join(folders), group, sweep.command, *names, seed, values, bool(tuning))


def draws_by_seed(preset: str, values: Values) -> bool:
    """Whether the method of a preset, with these settings over its own, draws something by `adapter.seed`."""
    method = resolve_config(preset)
    own = {name: getattr(method, name) for name in method.model_fields_set}
    typed = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("adapter.")}
    return "seed" in method.used(own | typed)


def _yaml(value: Any) -> str:
    """A value on one line of YAML, as `--set` reads it."""
    if isinstance(value, float):
        return repr(value) if "." in repr(value) or "e" not in repr(value) else repr(value).replace("e", ".0e")
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    as_json = json.dumps(value)
    return text if parse_yaml(text) == json.loads(as_json) else as_json  # a text that YAML 1.2 takes for a number
