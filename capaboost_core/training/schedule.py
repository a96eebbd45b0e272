"""The learning rate of each optimizer step."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from `warmup_lr` to `lr`, then a cosine or a line down to `min_lr`.

    Args:
        lr: The peak, reached at step `warmup_steps`.
        warmup_lr: The rate of the first step, if there is a warm-up.
        min_lr: The rate that step `total_steps` would have.
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    shape: Literal["cosine", "linear"] = "cosine"

    def __call__(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else 1 - done
        return self.min_lr + (self.lr - self.min_lr) * left
