"""How a run trains: the section that vision and text share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from capaboost_core.errors import UserError
from capaboost_core.training.schedule import Schedule


@dataclass(frozen=True)
class TrainSection:
    """How a run trains, for every task.

    `batch_size` is the global batch of one optimizer step: processes share it, and
    `gradient_accumulation_steps` splits it further, so neither changes what is computed.
    The warm-up takes `warmup_steps` steps, or else the share `warmup_ratio` of the run.
    `mixed_precision` None leaves the choice to `accelerate launch`.

    Raises:
        UserError: If a value is out of range.
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-4
    decay_biases: bool = False
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    schedule: Literal["cosine", "linear"] = "cosine"
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    max_grad_norm: float | None = None
    gradient_accumulation_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation_steps"):
            require(f"train.{name}", getattr(self, name), "1 or more", getattr(self, name) >= 1)
        for name in ("weight_decay", "warmup_lr", "min_lr", "seed"):
            require(f"train.{name}", getattr(self, name), "0 or more", getattr(self, name) >= 0)
        require("train.lr", self.lr, "a number above 0, such as 1e-3", 0 < self.lr < float("inf"))
        require("train.max_grad_norm", self.max_grad_norm, "a number above 0", (self.max_grad_norm or 1) > 0)
        require("train.warmup_ratio", self.warmup_ratio, "a number from 0 to below 1", 0 <= self.warmup_ratio < 1)
        require("train.warmup_steps", self.warmup_steps, "0 or more", (self.warmup_steps or 0) >= 0)
        limit = f"at most train.batch_size = {self.batch_size}"
        steps = self.gradient_accumulation_steps
        require("train.gradient_accumulation_steps", steps, limit, steps <= self.batch_size)

    def schedule_of(self, total_steps: int) -> Schedule:
        """The learning rates of a run of so many optimizer steps.

        Raises:
            UserError: If the warm-up would not end within the run.
        """
        warmup = self.warmup_steps
        if warmup is None:
            warmup = min(round(self.warmup_ratio * total_steps), total_steps - 1)
        limit = f"a number below the run's {total_steps} steps, or null for the share train.warmup_ratio"
        require("train.warmup_steps", warmup, limit, warmup < total_steps)
        return Schedule(self.lr, total_steps, warmup, self.warmup_lr, self.min_lr, self.schedule)


def require(name: str, value: Any, wanted: str, holds: bool) -> None:
    """Raise a UserError that names the setting unless `holds`."""
    if not holds:
        raise UserError(f"{name} is {value!r}; type {wanted}")
