"""Settings as text: allowed values, typed values, and the help."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
LISTS = {int: "whole numbers", float: "numbers"}
LONGEST = 60  # characters of a wrong value in a message


def shown(value: Any) -> str:
    """A value as YAML has it or Python shows it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of too many digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def wanted(field: FieldInfo) -> str:
    """What may be typed for a setting: `a number above 0, such as 1e-3, or null`."""
    *some, last = _alternatives(field.annotation, field)
    return f"{', '.join(some)}{',' if ' ' in some[-1] else ''} or {last}" if some else last


def help_on(sections: Mapping[str, Any], width: int = 79) -> str:
    """Every setting of the sections as `--set` takes it, with its value, its text and what may be typed.

    Args:
        sections: By name, classes of settings, shown with their defaults, or settings, shown with their values.
        width: Of the lines.
    """
    return "\n".join(_help_on_setting(name, section, setting, width)
                     for name, section in sections.items() for setting in _fields(section))  # fmt: skip


def _help_on_setting(name: str, section: Any, setting: str, width: int) -> str:
    field = _fields(section)[setting]
    value = field.default if isinstance(section, type) else section.to_dict()[setting]
    default = "VALUE" if field.is_required() else yaml.safe_dump(value, default_flow_style=True)
    default = default.removesuffix("\n...\n").strip()
    text = textwrap.wrap(f"{field.description} Type {wanted(field)}.", width - 6)
    return "\n      ".join([f"  {name}.{setting}={default}", *text])


def _fields(section: Any) -> dict[str, FieldInfo]:
    return (section if isinstance(section, type) else type(section)).model_fields


def _alternatives(hint: Any, field: FieldInfo) -> Iterator[str]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _alternatives(part, field)
    elif origin is Annotated:
        yield from _alternatives(get_args(hint)[0], field)
    elif origin is Literal:
        yield from (str(choice) for choice in get_args(hint))
    elif origin is tuple:
        yield f"a list of {LISTS.get(get_args(hint)[0], 'texts')}"
    elif origin is dict or hint not in (*WORDS, type(None)):  # the latter of settings in settings
        yield f"names with values, such as {(field.examples or ['{class_token: false}'])[0]}"
    elif hint is type(None):
        meaning = (field.json_schema_extra or {}).get("null")
        yield f"null for {meaning}" if meaning else "null"
    else:
        example = f", such as {field.examples[0]}" if field.examples else ""
        yield f"{WORDS[hint]}{_bounds(hint, field)}{example}"


def _bounds(hint: type, field: FieldInfo) -> str:
    names = ("ge", "gt", "le", "lt")
    limits = {name: getattr(part, name) for part in field.metadata for name in names if hasattr(part, name)}
    if hint is int and "lt" in limits:
        limits["le"] = limits.pop("lt") - 1
    match limits:
        case {"ge": low, "le": high}:
            return f" from {low} to {high}"
        case {"ge": low, "lt": high}:
            return f" from {low} to below {high}"
        case {"gt": low, "le": high}:
            return f" above {low} and at most {high}"
        case {"ge": low}:
            return f" of {low} or more"
        case {"gt": low}:
            return f" above {low}"
    return ""
