"""A run's configuration: YAML files with inheritance, then flags, then `--set`, all of it strict.

A run is a frozen dataclass whose fields are its sections, each a frozen dataclass that checks itself.
Nothing here knows a task: vision and text bring their own sections and share `TrainSection`.
"""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from capaboost_core.errors import UserError

Raw = dict[str, dict[str, Any]]
Run = TypeVar("Run")


@dataclass(frozen=True)
class TrainSection:
    """How a run trains, for every task.

    `batch_size` is the global batch of one optimizer step: processes share it, and
    `gradient_accumulation_steps` splits it further, so neither changes what is computed.
    `mixed_precision` None leaves the choice to `accelerate launch`.

    Raises:
        UserError: If a value is out of range.
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup_epochs: float = 10.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    schedule: Literal["cosine", "linear"] = "cosine"
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    max_grad_norm: float | None = None
    gradient_accumulation_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation_steps"):
            require(f"train.{name}", getattr(self, name), "1 or more", getattr(self, name) >= 1)
        for name in ("weight_decay", "warmup_epochs", "warmup_lr", "min_lr", "seed"):
            require(f"train.{name}", getattr(self, name), "0 or more", getattr(self, name) >= 0)
        require("train.lr", self.lr, "a number above 0, such as 1e-3", 0 < self.lr < float("inf"))
        require("train.max_grad_norm", self.max_grad_norm, "a number above 0", (self.max_grad_norm or 1) > 0)
        limit = f"below train.epochs = {self.epochs}"
        require("train.warmup_epochs", self.warmup_epochs, limit, self.warmup_epochs < self.epochs)
        limit = f"at most train.batch_size = {self.batch_size}"
        steps = self.gradient_accumulation_steps
        require("train.gradient_accumulation_steps", steps, limit, steps <= self.batch_size)


def require(name: str, value: Any, wanted: str, holds: bool) -> None:
    """Raise a UserError that names the setting unless `holds`."""
    if not holds:
        raise UserError(f"{name} is {value!r}; type {wanted}")


def read_config(path: str | Path) -> Raw:
    """The sections of a YAML file over those of its `base:` file, which is found beside it.

    Raises:
        UserError: If a file is missing, is not YAML, maps no sections, or inherits from itself.
    """
    return _read(Path(path), ())


def _read(path: Path, inheritors: tuple[Path, ...]) -> Raw:
    if path.resolve() in inheritors:
        raise UserError(f"{path} inherits from itself; mend the `base:` lines")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read {path}: {reason}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{path} must map section names to settings, such as `train: {{lr: 1e-3}}`")
    base = raw.pop("base", None)
    for section, settings in raw.items():
        if not isinstance(settings, dict):
            raise UserError(f"{path}: {section!r} must map names to values, such as `train: {{lr: 1e-3}}`")
    return merge_settings(_read(path.parent / str(base), (*inheritors, path.resolve())), raw) if base else raw


def merge_settings(*layers: Raw) -> Raw:
    """One set of sections; later layers win, setting by setting."""
    merged: Raw = {}
    for layer in layers:
        for section, settings in layer.items():
            merged[section] = merged.get(section, {}) | settings
    return merged


def parse_assignments(assignments: list[str]) -> Raw:
    """`["train.lr=1e-3"]` -> `{"train": {"lr": ...}}`; values are read as YAML.

    Raises:
        UserError: If a text is not of the form section.key=value.
    """
    layers = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise UserError(f"--set {assignment!r} is not of the form section.key=value, such as train.lr=3e-4")
        try:
            layers.append({section: {key: yaml.safe_load(text)}})
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment!r}: the value is not YAML; quote it") from error
    return merge_settings(*layers)


def scale_warmup(raw: Raw, changed: Raw) -> Raw:
    """Keep the warm-up's share of the run where only the number of epochs was changed."""
    before, after = raw.get("train", {}), changed.get("train", {})
    if "epochs" not in after or "warmup_epochs" in after:
        return changed
    values = [before.get("warmup_epochs", TrainSection.warmup_epochs), before.get("epochs", TrainSection.epochs)]
    values = [_convert(value, float) for value in (*values, after["epochs"])]
    if not all(isinstance(value, float) for value in values) or values[1] <= 0:
        return changed  # a wrong value, which building the section refuses by name
    return merge_settings(changed, {"train": {"warmup_epochs": values[0] * values[2] / values[1]}})


def build_run(cls: type[Run], raw: Raw) -> Run:
    """Make the run from its sections; what is not given has the section's default.

    Raises:
        UserError: If a section or a setting is unknown, missing, of a wrong type or out of range.
    """
    sections = typing.get_type_hints(cls)
    for name in raw:
        if name not in sections:
            raise UserError(f"unknown section {name!r}; {_hint(name, sections)}")
    return cls(**{name: _section(section, name, raw.get(name, {})) for name, section in sections.items()})


def _section(cls: type, name: str, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    settings = {field.name: field for field in fields(cls)}
    for key in values:
        if key not in settings:
            raise UserError(f"unknown setting {name}.{key}; {_hint(key, settings, f'{name}.')}")
    for key, field in settings.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{name}.{key} is not set; add it to the config or pass --set {name}.{key}=VALUE")
    return cls(**{key: _typed(f"{name}.{key}", value, hints[key]) for key, value in values.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    converted = _convert(value, hint)
    if converted is MISSING:
        raise UserError(f"{name} is {value!r}; type {_wanted(hint)}")
    return converted


def _convert(value: Any, hint: Any) -> Any:
    """The value as the hint has it, or MISSING."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return next((v for v in (_convert(value, h) for h in typing.get_args(hint)) if v is not MISSING), MISSING)
    if origin is Literal:
        value = "no" if value is False else value  # YAML reads a bare `no` as false
        return value if value in typing.get_args(hint) else MISSING
    if origin is tuple:
        return tuple(value) if isinstance(value, (list, tuple)) else MISSING
    if hint is float:
        return _number(value)
    same = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    return value if same else MISSING


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as a text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return MISSING
    try:
        return float(value)
    except ValueError:
        return MISSING


def _wanted(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if typing.get_origin(hint) is Literal:
        return ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "a list"
    return names.get(hint) or " or ".join(_wanted(part) for part in typing.get_args(hint))


def _hint(name: Any, known: Any, prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(prefix + k for k in known)}"


def to_dict(run: Any) -> dict[str, Any]:
    """The whole run as plain values that JSON can hold."""
    return {section: _plain(values) for section, values in asdict(run).items()}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
