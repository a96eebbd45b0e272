"""A run's configuration from plain values, strictly.

A run is a frozen dataclass whose fields are its sections, each a `Settings` that checks itself.
Nothing here knows a task: vision and text bring their own sections and share `TrainSection`.
"""

from __future__ import annotations

import typing
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from capaboost_core.errors import UserError
from capaboost_core.methods.base import check_preset, resolve_config
from capaboost_core.settings.base import Settings, hint
from capaboost_core.training.run_file import Raw, merge_settings, parse_assignments, read_config

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
    typed = merge_settings(flags, parse_assignments(assignments))
    file = read_config(path, method)
    _scale_warmup(file.get("train", {}), typed.get("train", {}))
    if method is not None:
        check_preset(method)
    made = {}
    for name, section in _known_sections(cls, file | typed).items():  # the method comes last, and with it torch
        own = _without_defaults(section, file.get(name, {}))
        if name == "adapter" and method is not None:
            own = preset_settings(method, own, typed.get(name, {}))
        made[name] = section.from_dict(merge_settings(own, typed.get(name, {})), f"{name}.")
    return cls(**made)


def _scale_warmup(recipe: dict[str, Any], typed: dict[str, Any]) -> None:
    """Warm-up steps of a recipe in proportion to the epochs that are typed in place of its own.

    Else a recipe of 25 epochs with 100 steps of warm-up would spend most of a run of 2 epochs below its rate.
    """
    counts = [typed.get("epochs"), recipe.get("epochs"), recipe.get("warmup_steps")]
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
    """The whole run as plain values that JSON can hold."""
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
