"""Settings as strict pydantic models, whose mistakes are one line that says what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from capaboost_core.errors import UserError
from capaboost_core.settings.text import shown, wanted

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(lambda v: tuple(v) if type(v) is list else v)]


class Settings(BaseModel):
    """Base of every group of settings: frozen, compared by value; unknown settings are refused.

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
            prefix: What stands before the names in messages, such as `train.`.

        Raises:
            UserError: If a setting is unknown, missing, of a wrong type or out of range.
        """
        made = cls.__new__(cls)
        made._fill(values, prefix)
        return made

    @classmethod
    def fields_for(cls, values: Mapping[str, Any]) -> dict[str, FieldInfo]:
        """The settings beside the given ones."""
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
        self.__dict__[name] = value
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
    name = first["loc"][0]
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
