"""Settings of a method by its name: which class they are of, and what means nothing to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic.fields import FieldInfo

from capaboost_core.errors import UserError
from capaboost_core.methods.registry import METHODS, find_method
from capaboost_core.settings.base import Settings
from capaboost_core.settings.text import shown
from capaboost_core.settings.yaml_file import read_yaml

UNTIED = {"num_tied": 1, "density": 1.0}  # true of a method without modules: saying so is no mistake


class NamedSettings(Settings):
    """Settings whose `method` says of which registered class they are; a class without a name makes one that has.

    Raises:
        UserError: If a setting is unknown to the method, or is out of range.
    """

    kind: ClassVar[str] = "adapter setting"
    name: ClassVar[str] = ""
    if_unrecorded: ClassVar[Mapping[str, Any]] = {}  # what a setting was that older adapter files do not tell

    def __new__(cls, method: Any = None, **_: Any) -> Self:
        return super().__new__(cls if cls.name else find_method("lora" if method is None else method))

    def __init__(self, method: str | None = None, **values: Any):
        super().__init__(**values if method is None else {"method": method, **values})

    def _fill(self, values: Any, prefix: str) -> None:
        if isinstance(values, Mapping):
            values = self._own(values, prefix)
        super()._fill(values, prefix)

    def _own(self, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The settings but for the method's name, and for what is true of a method without modules."""
        own = dict(values)
        if own.pop("method", self.name) != self.name:
            raise UserError(f"{prefix}method is {shown(values['method'])}, but this is method {self.name}; drop it")
        for name, value in list(own.items()):
            if name in type(self).model_fields or not any(name in cls.model_fields for cls in METHODS.values()):
                continue
            if UNTIED.get(name) != own.pop(name):
                raise UserError(f"{prefix}{name} is {shown(value)}; it means nothing to method {self.name}; drop it")
        return own

    @property
    def method(self) -> str:
        return self.name

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """The settings that mean something beside the given ones."""
        return set(cls.model_fields)

    @classmethod
    def fields_for(cls, values: Mapping[str, Any]) -> dict[str, FieldInfo]:
        """The settings of the method that the values name, `lora` if they name none."""
        return find_method(values.get("method", "lora")).model_fields

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], prefix: str = "") -> Self:
        """Build from plain values, as read from YAML or JSON; `method` says which, `lora` if it is left out.

        Args:
            values: By name of the setting.
            prefix: What stands before the names in messages, such as `adapter.`.

        Raises:
            UserError: If a setting is unknown, means nothing to the method, or is out of range.
        """
        if not cls.name:
            named = values.get("method", "lora") if isinstance(values, Mapping) else "lora"
            return find_method(named, prefix).from_dict(values, prefix)
        return super().from_dict(values, prefix)

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """Read back what an adapter file holds, in files of 0.1.0 with settings that mean nothing to the method.

        Raises:
            UserError: If a setting is unknown or out of range.
        """
        if not isinstance(values, Mapping):
            return cls.from_dict(values)
        found = find_method(values.get("method", "lora"))
        known = {name for method in METHODS.values() for name in method.model_fields}
        used = found.used(values) | {"method"}
        values = {**found.if_unrecorded, **values}
        return found.from_dict({name: value for name, value in values.items() if name in used or name not in known})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file that maps setting names to values.

        Raises:
            UserError: If the file is missing, is no mapping, or holds a wrong setting.
        """
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise UserError(f"{path} must map setting names to values, such as `r: 8`")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back and JSON can hold."""
        return {"method": self.name, **super().to_dict()}

    def replace(self, **changes: Any) -> Self:
        """A copy with other values of some settings.

        Raises:
            UserError: If the changed settings are not valid.
        """
        settings = {"method": self.name} | {name: getattr(self, name) for name in self.model_fields_set} | changes
        return find_method(settings["method"]).from_dict(settings)
