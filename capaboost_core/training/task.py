"""What the training loop asks of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """Examples to train on, with their loss and their metrics.

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
