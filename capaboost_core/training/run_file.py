"""Where a run's settings come from: YAML files with inheritance, then flags, then `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from capaboost_core.errors import UserError
from capaboost_core.settings_text import shown
from capaboost_core.yaml_file import parse_yaml, read_yaml

Raw = dict[str, dict[str, Any]]


def read_config(path: str | Path) -> Raw:
    """The sections of a YAML file over those of its `base:` file, which is found beside it.

    Raises:
        UserError: If a file is missing, is not YAML, maps no sections, or inherits from itself.
    """
    return _read(Path(path), ())


def _read(path: Path, inheritors: tuple[Path, ...]) -> Raw:
    if path.resolve() in inheritors:
        raise UserError(f"{path} inherits from itself; mend the `base:` lines")
    raw = read_yaml(path)
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
            layers.append({section: {key: parse_yaml(text)}})
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or "it may need quotes"
            raise UserError(f"--set {shown(assignment)}: the value is not YAML: {reason}") from error
    return merge_settings(*layers)
