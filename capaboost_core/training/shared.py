"""What several runs in one process make but once, such as decoded images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Made = TypeVar("Made")
MOST = 4  # values that are held; decoded training images are 150 MB a task at 224 px

_made: OrderedDict[Hashable, Any] | None = None


def share() -> None:
    """From now on `once` keeps what it makes. A run by itself does not: its data may have changed since the last."""
    global _made
    _made = OrderedDict() if _made is None else _made


def once(key: Hashable, make: Callable[[], Made]) -> Made:
    """The value of the key: made, or after `share` the one that was made before. Nobody may change it."""
    if _made is None:
        return make()
    if key not in _made:
        _made[key] = make()
    _made.move_to_end(key)
    while len(_made) > MOST:
        _made.popitem(last=False)
    return _made[key]
