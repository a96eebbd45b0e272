"""A run's configuration from plain values, strictly.

A run is a frozen dataclass whose fields are its sections, each a frozen dataclass that checks itself.
Nothing here knows a task: vision and text bring their own sections and share `TrainSection`.
"""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from capaboost_core.config import resolve_config
from capaboost_core.errors import UserError
from capaboost_core.training.run_file import Raw, merge_settings, parse_assignments, read_config

Run = TypeVar("Run")


def load_run(cls: type[Run], path: Path, flags: Raw, method: str | None, assignments: list[str]) -> Run:
    """The file's settings, with those that it has for the preset `method`, under the flags', under the preset's own,
    under those of `--set`.

    Raises:
        UserError: If anything is unknown, of a wrong type or out of range.
    """
    preset = preset_settings(method) if method else {}
    return build_run(cls, merge_settings(read_config(path, method), flags, preset, parse_assignments(assignments)))


def preset_settings(method: str) -> Raw:
    """What a preset says on the method; r, dropout and seed stay as the config has them.

    A prefix has neither alpha nor dropout, so that the config's are dropped.

    Raises:
        UserError: If there is no such preset.
    """
    preset = resolve_config(method)
    names = ["method", "num_tied", "density", "activation"]
    names += ["alpha", "dropout"] if preset.method == "prefix" else []
    return {"adapter": {name: getattr(preset, name) for name in names}}


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
    if origin is dict:
        return value if isinstance(value, dict) else MISSING
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
    if typing.get_origin(hint) is dict:
        return "names with values, such as {class_token: false}"
    return names.get(hint) or " or ".join(_wanted(part) for part in typing.get_args(hint))


def _hint(name: Any, known: Any, prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(prefix + k for k in known)}"


def to_dict(run: Any) -> dict[str, Any]:
    """The whole run as plain values that JSON can hold."""
    return {section: _plain(values) for section, values in asdict(run).items()}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
