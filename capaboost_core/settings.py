"""The safe subset of YAML that settings files may use."""

from __future__ import annotations

import copy
import difflib
import re
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from capaboost_core.errors import UserError

# Settings as strict pydantic models: a mistake is one line that says what to type, and `help_on` describes them.


TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
LIST_NAMES = {int: "whole numbers", float: "numbers"}
LONGEST_VALUE = 60  # characters of a wrong value in a message

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(lambda v: tuple(v) if type(v) is list else v)]


class Settings(BaseModel):
    """Base of every group of settings: frozen, compared by value; unknown settings raise an error.

    Types are strict, except that an integer is accepted for a float and a list for a tuple; numbers are finite.

    Raises:
        UserError: If a setting is unknown, missing, of a wrong type or out of range.
    """

    kind: ClassVar[str] = "setting"

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any):
        self._fill(values, "")

    def _fill(self, values: Any, prefix: str) -> None:
        try:
            self.__pydantic_validator__.validate_python(values, self_instance=self)
        except ValidationError as error:
            raise UserError(one_line(error, type(self), values, prefix)) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], prefix: str = "") -> Self:
        """Build from plain values, as read from YAML or JSON.

        Args:
            values: By name of the setting.
            prefix: Text before the names in messages, such as `train.`.

        Raises:
            UserError: If a setting is unknown, missing, of a wrong type or out of range.
        """
        made = cls.__new__(cls)
        made._fill(values, prefix)
        return made

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """The settings that mean something beside the given ones."""
        return set(cls.model_fields)

    @classmethod
    def fields_for(cls, values: Mapping[str, Any]) -> dict[str, FieldInfo]:
        """The settings that can be given with the given ones."""
        return cls.model_fields

    def replace(self, **changes: Any) -> Self:
        """A copy with other values of some settings; a default that follows from others follows the new ones.

        Raises:
            UserError: If the changed settings are not valid.
        """
        return self.from_dict({name: getattr(self, name) for name in self.model_fields_set} | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back and JSON can hold."""
        return self.model_dump(mode="json")

    def derive(self, name: str, value: Any) -> None:
        """Within a validator: give a setting the value that follows from others, as if it had not been set."""
        vars(self)[name] = value
        self.model_fields_set.discard(name)


def refuse(name: str, value: Any, advice: str) -> None:
    """Within a validator: raise the error that `name` is `value`, and what to type instead."""
    raise PydanticCustomError("refused", "{name}", {"name": name, "value": value, "advice": advice})


def one_line(error: ValidationError, cls: type[Settings], values: Any, prefix: str) -> str:
    """The first mistake in one line, with what to type instead."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "refused":
        return f"{prefix}{context['name']} is {shown(context['value'])}; {context['advice']}"
    if not first["loc"]:
        return f"{prefix.rstrip('.') or 'the configuration'} is {shown(values)}; give names with values"
    name = str(first["loc"][0])
    if kind in ("extra_forbidden", "invalid_key"):
        return f"unknown {'setting' if prefix else cls.kind} {prefix}{name}; {hint(name, cls.model_fields, prefix)}"
    if kind == "missing":
        return f"{prefix}{name} is not set; add it to the config or pass --set {prefix}{name}=VALUE"
    return f"{prefix}{name} is {shown(values[name])}; type {wanted(cls.model_fields[name])}"


def hint(name: Any, known: Iterable[str], prefix: str = "", otherwise: str | None = None) -> str:
    """`did you mean ...?` for a name that resembles a known one, else `otherwise`, or all that are known."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return otherwise or f"known: {', '.join(prefix + k for k in known)}"


def shown(value: Any) -> str:
    """A value in the notation of YAML or Python, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of too many digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def wanted(field: FieldInfo) -> str:
    """The values of a setting in words: `a number above 0, such as 1e-3, or null`."""
    *some, last = _alternatives(field.annotation, field)
    return f"{', '.join(some)}{',' if ' ' in some[-1] else ''} or {last}" if some else last


def help_on(sections: Mapping[str, Any], width: int = 79) -> str:
    """Every setting of the sections as in `--set`, with its value, its description and its possible values.

    Args:
        sections: Classes of settings, shown with their defaults, or settings, shown with their values, by name.
        width: Of the lines, in characters.
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
        yield f"a list of {LIST_NAMES.get(get_args(hint)[0], 'texts')}"
    elif origin is dict or hint not in (*TYPE_NAMES, type(None)):
        yield f"names with values, such as {(field.examples or ['{class_token: false}'])[0]}"
    elif hint is type(None):
        extra = field.json_schema_extra
        meaning = extra.get("null") if isinstance(extra, dict) else None
        yield f"null for {meaning}" if meaning else "null"
    else:
        example = f", such as {field.examples[0]}" if field.examples else ""
        yield f"{TYPE_NAMES[hint]}{_bounds(hint, field)}{example}"


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


MAX_DEPTH = 20  # levels of nesting


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file, with or without a byte-order mark.

    Raises:
        UserError: If the file cannot be read, is not YAML, or holds what `parse_yaml` refuses.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}; give the path of a YAML file") from error
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def parse_yaml(text: str) -> Any:
    """Values of plain types, with numbers as in YAML 1.2: `1e-3` is a number, `012` is 12, and `1:30` is text.

    Raises:
        YAMLError: If the text is not YAML, gives a name twice, has names that are not strings, tags of Python,
            halves of surrogate pairs, aliases, or more than 20 levels.
    """
    try:
        return copy.deepcopy(_parsed(text))
    except (ValueError, OverflowError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


@lru_cache(maxsize=256)  # the runs of a sweep read the same few files and values
def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses what PyYAML would drop silently, and what could fill the memory."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _refused("aliases such as *name are not read; write the value out", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(f"more than {MAX_DEPTH} levels of nesting", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _refused("half a surrogate pair is not a character; write the character itself", node.start_mark)
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            name = self.construct_object(key)
            if not isinstance(name, str):
                raise _refused(f"the name {key.value!r} is not a string; quote it", key.start_mark)
            if name in names:
                raise _refused(f"{name} is given twice; drop one", key.start_mark)
            names.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        digits = self.construct_scalar(node).replace("_", "")
        return int(digits, 16 if "0x" in digits else 10)


def _refused(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_INT_RE = re.compile(r"[-+]?(0x[0-9a-fA-F]+|[0-9][0-9_]*)$")
_REAL_RE = re.compile(r"[-+]?(([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$")
# Without YAML 1.1's numbers, which PyYAML reads: octal by a leading zero, and base 60.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, _INT_RE, list("-+0123456789"))
_Loader.add_implicit_resolver(_FLOAT, _REAL_RE, list("-+.0123456789"))
_Loader.add_constructor(_INT, _Loader.construct_number)
