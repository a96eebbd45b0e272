"""What the training loop asks of a task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn


class Task(Protocol):
    """Examples to train on, with their loss and their metrics.

    A task may have a method `fingerprint() -> str`, by `content_hash`, over the rows and labels that it trains and
    selects on: a run does not go on once they have changed. It may have a method `write_report(folder)`, called after
    `test`, which leaves what is to be looked at beside the result; and a method `trial(model) -> Tensor`: the mean
    loss of a few rows that are hardest for a model to read, such as the longest, after a pass over others that are
    only evaluated on.

    Attributes:
        unit: What an example is called, such as `images`.
        examples: Training examples of an epoch.
    """

    unit: str
    examples: int

    def batches(self, epoch: int) -> Sequence[Any]:
        """Global batches of examples in an order that depends on (seed, epoch) only; each can be sliced."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of (a slice of) a batch."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics after an epoch, equal in every process; may be empty."""

    def test(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the test split, equal in every process; called once, after training."""


def content_hash(arrays: Iterable[np.ndarray]) -> str:
    """Twelve hexadecimal digits that change with any value, shape or type of the arrays, or their order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]
