"""Where a run's settings come from: YAML files with inheritance, then flags, then `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from capaboost_core.errors import UserError
from capaboost_core.methods.base import check_preset
from capaboost_core.settings.text import shown
from capaboost_core.settings.yaml_file import parse_yaml, read_yaml

Raw = dict[str, dict[str, Any]]


METHODS = "methods"  # what a file has for a preset alone: `methods: {full: {train: {lr: 2e-5}}}`


def read_config(path: str | Path, method: str | None = None) -> Raw:
    """The sections of a YAML file over those of its `base:` file, a path relative to it.

    Args:
        path: The file.
        method: A preset; the sections that the files have under `methods` for it go over the others.

    Raises:
        UserError: If a file is missing, is not YAML, maps no sections, or inherits from itself.
    """
    raw = _read(Path(path), ())
    own = raw.pop(METHODS, {})
    for name in own:
        check_preset(name)
    return merge_settings(raw, own.get(method, {}))


def _read(path: Path, inheritors: tuple[Path, ...]) -> Raw:
    if inheritors and path.resolve() in inheritors:
        raise UserError(f"{path} inherits from itself; correct the `base:` lines")
    raw = read_yaml(path)
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{path} must map section names to settings, such as `train: {{lr: 1e-3}}`")
    base = raw.pop("base", None)
    _check_sections(path, raw)
    for sections in raw.get(METHODS, {}).values():
        _check_sections(path, sections)
    return merge_settings(_read(path.parent / str(base), (*inheritors, path.resolve())), raw) if base else raw


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
            both = isinstance(before, dict) and isinstance(value, dict)
            merged[name] = merge_settings(before, value) if both else value
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
            layer = {key: parse_yaml(text)}
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
