"""A sweep file: the tasks, methods and seeds that are run, what is tuned, and the inputs that must exist."""

from __future__ import annotations

import itertools
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from capaboost.report.sizes import check_budget
from capaboost.runs.settings import shipped
from capaboost_core.errors import UserError
from capaboost_core.settings import Settings, Text, hint, read_yaml

Values = dict[str, Any]  # settings by section.key, such as train.lr
OWN_NAMES = {"tasks": "task", "methods": "preset"}  # the key for the real name, where a sweep calls it otherwise
MASK_SEED, WIDEN = "adapter.seed", 2
SET_BY_SWEEP = ("train.seed", "train.test", "adapter.method")  # the sweep sets these itself


class Tune(Settings):
    """How the settings of a method are chosen on each task: by the mean on the rows for selection, tests unseen.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    grid: dict[str, tuple[Any, ...]] = Field(
        examples=["{train.lr: [1e-3, 1e-2]}"],
        description="Values to try by section.key; every combination is a run.",
    )
    protocol: Text = Field("select", description="The protocol of the tuning runs, one with rows for selection.")
    epoch: Literal["last", "best"] | None = Field(
        None,
        json_schema_extra={"null": "best if the final runs select their best one, else last"},
        description="The epoch by which a tuning run is judged.",
    )
    seeds: tuple[int, ...] = Field((), description="Of the tuning runs; by default the sweep's first seed.")
    widen: int | None = Field(
        None,
        ge=0,
        le=20,
        json_schema_extra={"null": f"{WIDEN}, without trials"},
        description="How often a grid of numbers goes on past an end that holds the best value.",
    )
    trials: int | None = Field(
        None,
        ge=2,
        le=1000,
        json_schema_extra={"null": "as widen says"},
        description="How many values each method tries of the one setting of the grid: past the end that is nearer to "
        "the best, of equal distances the lower, until there are as many. In place of widen, by which methods differ "
        "in their number.",
    )

    @field_validator("grid", "seeds", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return _tuples(value)

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        _check_values("tune.grid", grid, least=2)
        return grid

    @model_validator(mode="after")
    def _check_trials(self) -> Self:
        if self.trials is None:
            return self
        if self.widen is not None:
            raise ValueError("tune.trials takes the place of tune.widen; drop one")
        sizes = [len(values) for values in self.grid.values() if are_numbers(values)]
        if len(self.grid) != 1 or not sizes or sizes[0] > self.trials:
            raise ValueError(
                f"tune.trials is {self.trials}; it needs a grid of one setting, of at most so many numbers"
            )
        return self


class SweepFile(Settings):
    """The settings of a sweep file.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    kind = "key of a sweep file"

    command: Literal["train-vtab", "train-glue", "train-squad", "train-lm"] = Field(description="What trains a run.")
    tasks: dict[str, Values] = Field(
        min_length=1,
        examples=["[digits, dtd]"],
        description="Settings of each task by its name; or by any name, with its own in `task`.",
    )
    methods: dict[str, Values] = Field(
        min_length=1,
        examples=["[lora, capaboost-lora]"],
        description="Settings of each method by its preset; or by any name, with its own in `preset`.",
    )
    seeds: tuple[int, ...] = Field(min_length=1, description="A run for each.")
    mask_seed: Literal["run"] | None = Field(
        None,
        json_schema_extra={"null": "adapter.seed for all runs"},
        description="run: masks, and all else that a method draws by adapter.seed, move with the seed of the run.",
    )
    budget: Text | None = Field(
        None, description="Trained parameters of each method, such as 220k or 0.26%: its size follows."
    )
    nearest: bool = Field(
        False, description="Take the nearest size of a method also where none is within 10 % of the budget."
    )
    set: Values = Field({}, examples=["{train.epochs: 20}"], description="Settings of all runs by section.key.")
    vary: dict[str, tuple[Any, ...]] = Field(
        {},
        examples=["{adapter.r: [4, 8]}"],
        description="More values by section.key; all combinations are run.",
    )
    seeds_at_best: tuple[int, ...] = Field(
        (),
        examples=["[43, 44]"],
        description="More seeds at the best combination of `vary`, of each task and method, and those next to it.",
    )
    tune: Tune | None = Field(
        None,
        examples=["{grid: {train.lr: [1e-3, 1e-2]}}"],
        description="What is chosen for each task and method before the seeds are run.",
    )

    @field_validator("seeds", "seeds_at_best", "vary", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return _tuples(value)

    @field_validator("tasks", "methods", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A list of names, or names without settings."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {name: {} for name in value}
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("tune", mode="before")
    @classmethod
    def _tune(cls, value: Any) -> Any:
        return Tune.from_dict(value, "tune.") if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        all_seeds = self.seeds + self.seeds_at_best
        if len(set(all_seeds)) < len(all_seeds):
            raise ValueError("seeds and seeds_at_best hold a seed twice; drop one")
        if self.seeds_at_best and (self.tune is not None or not self.vary):
            raise ValueError("seeds_at_best needs vary, and no tune, which chooses the best by itself")
        for name in (*self.tasks, *self.methods):
            if not name or Path(name).name != name or name.startswith("."):
                raise ValueError(f"{name!r} names a folder of the sweep; type a name without slashes")
        _check_keys("set", self.set)
        if self.mask_seed and any(MASK_SEED in values for values in self._all_values()):
            raise ValueError(f"mask_seed: run sets {MASK_SEED} itself; drop one")
        _check_values("vary", self.vary, least=1)
        if self.budget is not None:
            check_budget(self.budget)
        elif self.nearest:
            raise ValueError("nearest belongs to budget; give one, or leave it out")
        for room, own_name in OWN_NAMES.items():
            for name, values in getattr(self, room).items():
                _check_keys(f"{room}.{name}", {key: value for key, value in values.items() if key != own_name})
        return self

    def _all_values(self) -> list[Values]:
        grid = self.tune.grid if self.tune else {}
        return [self.set, self.vary, grid, *self.tasks.values(), *self.methods.values()]

    @cached_property
    def varied(self) -> dict[str, Values]:
        """The combinations of `vary` by their names in folders, made once."""
        return {label(values): values for values in combinations(self.vary)}


def combinations(grid: dict[str, tuple[Any, ...]]) -> list[Values]:
    """Every combination of a grid's values; of an empty grid the one of nothing."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def label(values: Values) -> str:
    """`lr=0.001,alpha=32`: settings in the name of a folder."""
    return ",".join(f"{key.rpartition('.')[2]}={plain(value)}" for key, value in values.items())


def read_sweep(path: Path) -> SweepFile:
    """The sweep of a YAML file.

    Raises:
        UserError: If it cannot be read, or holds a wrong key or value.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must map command, tasks, methods and seeds to values; see docs/sweeps.md")
    try:
        return SweepFile.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _check_values(key_path: str, grid: dict[str, tuple[Any, ...]], least: int) -> None:
    """Different values have different names in folders."""
    _check_keys(key_path, grid)
    for key, values in grid.items():
        if len({plain(value) for value in values}) < max(len(values), least):
            raise ValueError(f"{key_path}.{key} must list {('one', 'two')[least - 1]} or more different values")


def are_numbers(values: tuple[Any, ...]) -> bool:
    """Whether a grid can go on past its ends."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 for value in values)


def plain(value: Any) -> str:
    """A value in the name of a folder."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in "._-+" else "_" for c in text)


def _check_keys(key_path: str, values: Values) -> None:
    for key in values:
        if "." not in key:
            raise ValueError(f"{key_path}: {key!r} is not of the form section.key; type for example train.lr")
        if key in SET_BY_SWEEP:
            raise ValueError(f"{key_path}: the sweep sets {key} itself; use seeds, methods or tune")


def file_of(name: Path) -> Path:
    """The file of a path, or of the name of a shipped sweep.

    Raises:
        UserError: If it is neither.
    """
    files = {path.stem: path for path in sorted((shipped("configs") / "sweeps").glob("*.yaml"))}
    if str(name) in files:
        return files[str(name)]
    if not name.exists():
        raise UserError(f"there is no file {name}, and no shipped sweep of this name; {hint(name, files)}")
    return name


def check_inputs(settings: Any) -> None:
    """Refuse a file or folder that is missing, of which else every run would fail by itself.

    Args:
        settings: Of a run, as its command reads them.

    Raises:
        UserError: It names the setting.
    """
    named = {"model.weights": getattr(settings.model, "weights", None)}
    named |= {f"data.{key}": getattr(settings.data, key, None) for key in ("dir", "file")}
    if getattr(settings.data, "source", None) == "tfds":  # which makes its folder
        del named["data.dir"]
    for key, path in named.items():
        if path and not Path(path).exists():
            raise UserError(f"{key}: {path} does not exist, seen from {Path.cwd()}")
