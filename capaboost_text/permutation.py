"""The fixed order in which rows go to splits, independent of the run's seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

SPLIT_SEED = 42  # the published one

Row = TypeVar("Row")


def permutation(size: int) -> list[int]:
    """A fixed permutation of range(size), drawn as in the code behind Table 2 of arXiv 2407.01320."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()


def take(rows: Sequence[Row], count: int | None) -> list[Row]:
    """The first `count` rows of the fixed order, always the same ones; all rows, as they stand, for None."""
    return list(rows) if count is None else [rows[i] for i in permutation(len(rows))[:count]]


def halve(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The halves of the fixed order: the first to select on, the second to test on."""
    order, half = permutation(len(rows)), len(rows) // 2
    return [rows[i] for i in order[:half]], [rows[i] for i in order[half:]]
