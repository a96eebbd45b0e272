"""What a task on texts or pairs of texts reads."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """One or two texts, and the index of the class or the number to predict."""

    text: str
    pair: str | None
    label: int | float
