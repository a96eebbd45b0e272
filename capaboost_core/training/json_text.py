"""Strictly standard JSON."""

from __future__ import annotations

import json
import math
from typing import Any

LARGEST = 1e300


def to_json(values: Any, indent: int | None = None) -> str:
    """The values as JSON; a number that is not finite, which JSON does not have, becomes null."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a number that a float holds, and so neither infinite nor NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
