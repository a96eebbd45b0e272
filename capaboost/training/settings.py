"""A run's settings: from YAML files with inheritance, then flags, then `--set`, each section checked strictly.

A run is a frozen dataclass whose fields are its sections, each a `Settings` that checks itself.
Nothing here knows a task: vision and text bring their own sections and share `TrainSection`.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from capaboost_core.errors import UserError
from capaboost_core.methods.method import check_preset, resolve_config
from capaboost_core.settings import Settings, hint, parse_yaml, read_yaml, refuse, shown

Raw = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from `warmup_lr` to `lr`, then a cosine or a line down to `min_lr`.

    Args:
        lr: The peak, reached at step `warmup_steps`.
        warmup_lr: The rate of the first step, if there is a warm-up.
        min_lr: The rate that step `total_steps` would have.
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    shape: Literal["cosine", "linear"] = "cosine"

    def __call__(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else 1 - done
        return self.min_lr + (self.lr - self.min_lr) * left


class TrainSection(Settings):
    """How a run trains, for every task.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    epochs: int = Field(100, ge=1, le=1_000_000, description="Passes over the training rows.")
    batch_size: int = Field(
        64,
        ge=1,
        le=1_000_000,
        description="Rows of one optimizer step, over all processes and slices: neither changes what is computed.",
    )
    lr: float = Field(1e-3, gt=0, examples=["1e-3"], description="Peak learning rate of AdamW.")
    head_lr: float | None = Field(
        None,
        gt=0,
        examples=["5e-3"],
        json_schema_extra={"null": "lr"},
        description="Peak learning rate of the head alone, which rises and falls in proportion to lr; --lr and "
        "--lr-grid leave it as it is.",
    )
    weight_decay: float = Field(1e-4, ge=0, le=1000, examples=["0.01"], description="Weight decay of AdamW.")
    decay_biases: bool = Field(
        False, description="Decay biases and norms too, as FacT does; the authors' trainer and timm leave them out."
    )
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, examples=["0.1"], description="Share of the run's steps over which the rate rises to lr."
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        le=1_000_000_000,
        json_schema_extra={"null": "warmup_ratio"},
        description="Steps over which the rate rises to lr, in place of warmup_ratio.",
    )
    warmup_lr: float = Field(
        1e-6, ge=0, examples=["0"], description="Rate of the first step; at most lr, to which the default is lowered."
    )
    min_lr: float = Field(
        1e-5, ge=0, examples=["0"], description="Rate to fall to; at most lr, to which the default is lowered."
    )
    schedule: Literal["cosine", "linear"] = Field("cosine", description="How the rate falls from lr to min_lr.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of head, order and dropout; adapter.seed is that of the masks."
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = Field(
        "auto",
        description="Precision of the products; auto: what accelerate launch was given, else bf16 where the device "
        "multiplies it natively, else float32.",
    )
    max_grad_norm: float | None = Field(
        None,
        gt=0,
        examples=["1.0"],
        json_schema_extra={"null": "no clipping"},
        description="Norm to which gradients are clipped.",
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Slices of a batch that go through the model one by one; at most batch_size."
    )

    select: Literal["last"] | None = Field(
        None,
        json_schema_extra={"null": "the best epoch on the rows for selection"},
        description="The epoch that a protocol with rows for selection ends with; last: as protocols without them.",
    )
    test: bool = Field(
        True,
        description="false, for tuning: the rows to test on stay unseen, and the value is that which selects the "
        "epoch.",
    )

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _read_no(cls, value: Any) -> Any:
        """YAML 1.1 reads a bare `no` as false; `null` was the word for `auto` up to 0.1.0."""
        return "no" if value is False else "auto" if value is None else value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.gradient_accumulation_steps > self.batch_size:
            limit = f"type at most train.batch_size = {self.batch_size}"
            refuse("gradient_accumulation_steps", self.gradient_accumulation_steps, limit)
        for name in ("warmup_lr", "min_lr"):
            rate = getattr(self, name)
            if rate <= self.lr:
                continue
            if name in self.model_fields_set:
                refuse(name, rate, f"type at most train.lr = {self.lr}, or leave it out")
            self.derive(name, self.lr)
        return self

    def schedule_of(self, total_steps: int) -> Schedule:
        """The learning rates of a run of so many optimizer steps.

        Raises:
            UserError: If the warm-up would not end within the run.
        """
        warmup = self.warmup_steps
        if warmup is None:
            warmup = min(round(self.warmup_ratio * total_steps), total_steps - 1)
        if warmup >= total_steps:
            raise UserError(
                f"train.warmup_steps is {warmup}; type a number below the run's {total_steps} steps, "
                "or null for the share train.warmup_ratio"
            )
        return Schedule(self.lr, total_steps, warmup, self.warmup_lr, self.min_lr, self.schedule)


METHODS = "methods"  # what a file has for a preset alone: `methods: {full: {train: {lr: 2e-5}}}`
MODELS = "models"  # the file that takes its place for a model: `models: {capaboost_vit_micro_patch8_64: _micro.yaml}`


def read_config(path: str | Path, method: str | None = None, model: str | None = None) -> Raw:
    """The sections of a YAML file over those of its `base:` file, a path relative to it.

    Args:
        path: The file.
        method: A preset; the sections that the files have under `methods` for it go over the others.
        model: The name of the model, by default the file's own. A file that lists another one for it under `models`
            gives way to that one, which may inherit from it.

    Raises:
        UserError: If a file is missing, is not YAML, maps no sections, or inherits from itself.
    """
    raw = merge_settings(*(raw for _, raw in _files(Path(path), model)))
    own = raw.pop(METHODS, {})
    for name in own:
        check_preset(name)
    return merge_settings(raw, own.get(method, {}) if method else {})


def _files(path: Path, model: str | None) -> list[tuple[Path, Raw]]:
    """The files of `read_config`, each with its own sections, from the last base to the file itself."""
    if model is None:
        model = merge_settings(*(raw for _, raw in _chain(path, None, ()))).get("model", {}).get("name")
    return _chain(path, model, ())


def _chain(path: Path, model: str | None, inheritors: tuple[Path, ...]) -> list[tuple[Path, Raw]]:
    if path.resolve() in inheritors:
        raise UserError(f"{path} inherits from itself; correct the `base:` lines")
    raw = read_yaml(path)
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{path} must map section names to settings, such as `train: {{lr: 1e-3}}`")
    base, models = raw.pop("base", None), raw.pop(MODELS, {})
    _check_sections(path, raw)
    for sections in raw.get(METHODS, {}).values():
        _check_sections(path, sections)
    if not isinstance(models, dict) or not all(isinstance(other, str) for other in models.values()):
        raise UserError(f"{path}: {MODELS!r} must map names of models to files, such as `{{NAME: mine.yaml}}`")
    other = models.get(str(model).partition(".")[0])  # without the tag, as in NAME.in21k
    if other and (path.parent / other).resolve() not in inheritors:
        return _chain(path.parent / other, model, inheritors)
    below = _chain(path.parent / str(base), model, (*inheritors, path.resolve())) if base else []
    return [*below, (path, raw)]


def _check_sections(path: Path, raw: Any) -> None:
    for section, settings in raw.items() if isinstance(raw, dict) else [(METHODS, raw)]:
        if not isinstance(settings, dict):
            raise UserError(f"{path}: {section!r} must map names to values, such as `train: {{lr: 1e-3}}`")


def merge_settings(*layers: Raw) -> Raw:
    """One set of sections; later layers win, setting by setting at every depth."""
    merged: Raw = {}
    for layer in layers:
        for name, value in layer.items():
            before = merged.get(name)
            if isinstance(before, dict) and isinstance(value, dict):
                merged[name] = merge_settings(before, value)
            else:
                merged[name] = value
    return merged


def parse_assignments(assignments: list[str]) -> Raw:
    """`["train.lr=1e-3"]` -> `{"train": {"lr": ...}}`, `["model.kwargs.img_size=518"]` likewise one deeper.

    Values are read as YAML.

    Raises:
        UserError: If a text is not of the form section.key=value.
    """
    layers = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        *sections, key = name.strip().split(".")
        if not (equals and sections and key and all(sections)):
            raise UserError(f"--set {assignment!r} is not of the form section.key=value, such as train.lr=3e-4")
        try:
            layer: Raw = {key: parse_yaml(text)}
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or "it may need quotes"
            raise UserError(f"--set {shown(assignment)}: the value is not YAML: {reason}") from error
        for section in reversed(sections):
            layer = {section: layer}
        layers.append(layer)
    return merge_settings(*layers)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1e-3}}` -> `{"train.lr": 1e-3}`, at every depth."""
    flattened = {}
    for key, value in values.items():
        flattened |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flattened


def nested(values: dict[str, Any]) -> Raw:
    """`{"train.lr": 1e-3}` -> `{"train": {"lr": 1e-3}}`, at every depth."""
    layers = []
    for name, layer in values.items():
        for key in reversed(name.split(".")):
            layer = {key: layer}
        layers.append(layer)
    return merge_settings(*layers)


RunOfTask = TypeVar("RunOfTask")


def load_run(cls: type[RunOfTask], path: Path, flags: Raw, method: str | None, assignments: list[str]) -> RunOfTask:
    """The file's settings, with those that it has for the preset `method`, under the flags', under the preset's own,
    under those of `--set`.

    A default that the file spells out stays a default: typed values override it, as `--lr 1e-7` does
    with a higher `min_lr`. With `--method`, settings of the file that the method does not have are left out. Where
    other epochs are typed, the file's `warmup_steps` keep their share of the run.

    Raises:
        UserError: If anything is unknown, of a wrong type or out of range.
    """
    return cls(**dict(sections_in_turn(cls, path, flags, method, assignments)))


def sections_in_turn(
    cls: type, path: Path, flags: Raw, method: str | None, assignments: list[str]
) -> Iterator[tuple[str, Settings]]:
    """The sections of `load_run`, each with its name; the method comes last, and with it the import of torch."""
    typed = merge_settings(flags, parse_assignments(assignments))
    file = read_config(path, method, _model_of(typed))
    _scale_warmup(file.get("train", {}), typed.get("train", {}))
    if method is not None:
        check_preset(method)
    for name, section in _known_sections(cls, file | typed).items():
        own = _without_defaults(section, file.get(name, {}))
        if name == "adapter" and method is not None:
            own = preset_settings(method, own, typed.get(name, {}))
        yield name, section.from_dict(merge_settings(own, typed.get(name, {})), f"{name}.")


def origins(path: Path, flags: Raw, method: str | None, assignments: list[str]) -> dict[str, str]:
    """Where `load_run` has each setting from, as `section.key`; the others are defaults.

    Of several, the last counts: base files, the file, what the files have for the preset, the preset, flags, `--set`.
    """
    found: dict[str, str] = {}
    of_preset: dict[str, str] = {}
    for file, raw in _files(path, _model_of(merge_settings(flags, parse_assignments(assignments)))):
        methods = raw.pop(METHODS, {})
        found |= dict.fromkeys(flat(raw), file.name)
        of_preset |= dict.fromkeys(flat(methods.get(method or "", {})), f"{file.name} for {method}")
    found |= of_preset
    if method is not None:
        found |= {
            f"adapter.{name}": f"preset {method}" for name in ("method", *resolve_config(method).model_fields_set)
        }
    found |= dict.fromkeys(flat(flags), "a flag")
    return found | dict.fromkeys(flat(parse_assignments(assignments)), "--set")


def _model_of(typed: Raw) -> str | None:
    """The model that was typed, if any."""
    return typed.get("model", {}).get("name")


def _scale_warmup(recipe: dict[str, Any], typed: dict[str, Any]) -> None:
    """Warm-up steps of a recipe in proportion to the epochs that are typed in place of its own.

    Else a recipe of 25 epochs with 100 steps of warm-up would spend most of a run of 2 epochs below its learning rate.
    """
    counts: list[Any] = [typed.get("epochs"), recipe.get("epochs"), recipe.get("warmup_steps")]
    if "warmup_steps" in typed or any(type(count) is not int or count < 1 for count in counts):
        return  # nothing to scale, or what the checks of the sections refuse
    epochs, recipe_epochs, steps = counts
    recipe["warmup_steps"] = max(1, steps * epochs // recipe_epochs)


def preset_settings(method: str, configured: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
    """A preset's adapter settings, over those of the file that its method has.

    Args:
        method: Name of the preset, such as one that sets method, num_tied and density.
        configured: The file's settings; those that the preset leaves open stay as they are there.
        typed: What `--set` changes later; density gives way to masks of n and m.

    Raises:
        UserError: If there is no such preset.
    """
    preset = resolve_config(method)
    under = configured | {name: getattr(preset, name) for name in preset.model_fields_set} | {"method": preset.method}
    used = preset.used(under | typed) - ({"density"} if (under | typed).get("mask") == "nm" else set())
    return {name: value for name, value in under.items() if name in used | {"method"}}


@cache
def sections_of(cls: type) -> dict[str, type[Settings]]:
    """The sections of a run by name."""
    return typing.get_type_hints(cls)


def build_run(cls: type[RunOfTask], raw: Raw) -> RunOfTask:
    """Make the run from its sections; what is not given has the section's default.

    Raises:
        UserError: If a section or a setting is unknown, missing, of a wrong type or out of range.
    """
    sections = _known_sections(cls, raw)
    return cls(**{name: section.from_dict(raw.get(name, {}), f"{name}.") for name, section in sections.items()})


def to_dict(run: Any) -> dict[str, Any]:
    """All settings of the run as plain values that JSON can hold."""
    return {field.name: getattr(run, field.name).to_dict() for field in fields(run)}


def _known_sections(cls: type, raw: Raw) -> dict[str, type[Settings]]:
    sections = sections_of(cls)
    for name in raw:
        if name not in sections:
            raise UserError(f"unknown section {name!r}; {hint(name, sections)}")
    return sections


def _without_defaults(section: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    fields = section.fields_for(values)
    return {key: value for key, value in values.items() if not _is_default(fields.get(key), value)}


def _is_default(field: FieldInfo | None, value: Any) -> bool:
    return field is not None and (type(value), value) == (type(field.default), field.default)
