"""The methods and presets by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from capaboost_core.errors import UserError, reason_of
from capaboost_core.settings.text import shown

if TYPE_CHECKING:
    from capaboost_core.methods.base import Method

GROUP, PLUGINS = "capaboost.methods", "CAPABOOST_PLUGINS"
Found = TypeVar("Found")


class Registry(MutableMapping[str, Found]):
    """Entries by name; one that is announced is known by name, and imports its module when it is looked up."""

    def __init__(self) -> None:
        self.entries: dict[str, Found | None] = {}
        self.modules: dict[str, str] = {}

    def announce(self, name: str, module: str) -> None:
        self.entries[name], self.modules[name] = None, module

    def __getitem__(self, name: str) -> Found:
        if self.entries[name] is None:
            _import(self.modules[name])
        found = self.entries[name]
        if found is None:
            raise UserError(f"{self.modules[name]} was to register {name}, but does not; correct its entry point")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __setitem__(self, name: str, entry: Found) -> None:
        self.entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.entries[name]


METHODS: Registry[type[Method]] = Registry()
PRESETS: Registry[Method] = Registry()  # what --method and `capaboost="..."` take


def announce(module: str, presets: Iterable[str]) -> None:
    """Make the presets of a module known, and its methods, the presets without `capaboost-`; it is not imported."""
    for preset in presets:
        PRESETS.announce(preset, module)
        if not preset.startswith("capaboost-"):
            METHODS.announce(preset, module)


def register_method(name: str, **presets: Mapping[str, Any]) -> Callable[[type[Method]], type[Method]]:
    """Make a class the method `name`; nothing else has to know of it.

    Args:
        name: What `method` says in settings and files.
        **presets: Settings by the name of a preset, with `_` for `-`; without any, `name` has the defaults.
    """

    def register(cls: type[Method]) -> type[Method]:
        cls.name = name
        METHODS[name] = cls
        for preset, settings in (presets or {name: {}}).items():
            PRESETS[preset.replace("_", "-")] = cls(**settings)
        return cls

    return register


def load_plugins() -> None:
    """Make the methods of other packages known.

    Those of the entry-point group `capaboost.methods`, whose name is the preset and whose value the module that
    registers it, are imported when they are used. The modules that the environment variable CAPABOOST_PLUGINS lists,
    as `--plugin` sets it for this process and those that it starts, are imported now.

    Raises:
        UserError: If such a module cannot be imported.
    """
    for entry in entry_points(group=GROUP):
        if entry.name not in PRESETS:  # no package takes the name of another's method
            announce(entry.module, (entry.name,))
    for module in filter(None, os.environ.get(PLUGINS, "").split(",")):
        _import(module)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:  # another's code may fail in any way
        raise UserError(f"plugin {module} cannot be imported ({reason_of(error)}); it must be a module") from error


def find_method(name: Any, prefix: str = "") -> type[Method]:
    """The class of a method.

    Raises:
        UserError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"{prefix}method is {shown(name)}; type {listed(METHODS)}")
    return METHODS[name]


def listed(names: Mapping[str, Any]) -> str:
    """`a, b or c`."""
    *some, last = names
    return f"{', '.join(some)} or {last}"
