"""The methods and presets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from capaboost_core.errors import UserError
from capaboost_core.settings.text import shown

if TYPE_CHECKING:
    from capaboost_core.methods.base import Method

METHODS: dict[str, type[Method]] = {}
PRESETS: dict[str, Method] = {}  # what --method and `capaboost="..."` take


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
