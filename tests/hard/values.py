"""What the cases are generated from: plain values of any type, and damage to values and bytes."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 7, 2**31, 2**32, 2**63, 2**70, 10**400, -0.0, 0.5, 1e-300, 1e300])
NOT_FINITE = st.sampled_from([float("nan"), float("inf"), float("-inf")])
TEXTS = st.sampled_from(
    ["", " ", "no", "1e-3", "1e400", "random", "lora", "first", "a\nb", "é\u2028", "\0", "x" * 3000]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | NUMBERS | NOT_FINITE | TEXTS | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
DELETED = object()


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all parts of a nested value, its own `()` first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, part in inner for place in places(part, (*path, key))]


def changed(value: Any, path: tuple, new: Any) -> Any:
    """A copy of a nested value with another part at a path, or without it."""
    if not path:
        return new
    value = copy.deepcopy(value)
    part = value
    for key in path[:-1]:
        part = part[key]
    if new is DELETED:
        del part[path[-1]]
    else:
        part[path[-1]] = new
    return value


@st.composite
def mutated(draw: st.DrawFn, value: Any, most: int = 2, new: st.SearchStrategy = ANYTHING) -> Any:
    """A valid nested value with one part or a few replaced by anything, deleted, or taken from elsewhere in it."""
    for _ in range(draw(st.integers(1, most))):
        inner = [place for place in places(value) if place]
        if not inner:
            return value
        path, other = draw(st.sampled_from(inner)), draw(st.sampled_from(inner))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "delete", "copy"]))
        part = value
        for key in other:
            part = part[key]
        made = draw(new) if kind == "replace" else DELETED if kind == "delete" else copy.deepcopy(part)
        value = changed(value, path, made)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with bits flipped, cut off, cut out, or put in."""
    if not content:
        return b"\0"
    kind = draw(st.sampled_from(["flip", "flip", "cut", "drop", "insert", "zero"]))
    start = draw(st.integers(0, len(content) - 1))
    stop = min(len(content), start + draw(st.integers(1, 64)))
    if kind == "flip":
        spoilt = bytearray(content)
        for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3, unique=True)):
            spoilt[place] ^= 1 << draw(st.integers(0, 7))
        return bytes(spoilt)
    if kind == "cut":
        return content[:start]
    if kind == "drop":
        return content[:start] + content[stop:]
    if kind == "insert":
        return content[:start] + draw(st.binary(min_size=1, max_size=16)) + content[start:]
    return content[:start] + bytes(stop - start) + content[stop:]
