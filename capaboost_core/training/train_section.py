"""How a run trains: the section that vision and text share."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from capaboost_core.errors import UserError
from capaboost_core.settings.base import Settings, refuse
from capaboost_core.training.schedule import Schedule


class TrainSection(Settings):
    """How a run trains, for every task.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    epochs: int = Field(100, ge=1, le=1_000_000, description="Passes over the training rows.")
    batch_size: int = Field(
        64,
        ge=1,
        le=1_000_000,
        description="Rows of one optimizer step, over all processes and slices: neither changes what is computed.",
    )
    lr: float = Field(1e-3, gt=0, examples=["1e-3"], description="Peak learning rate of AdamW.")
    weight_decay: float = Field(1e-4, ge=0, le=1000, examples=["0.01"], description="Weight decay of AdamW.")
    decay_biases: bool = Field(
        False, description="Decay biases and norms too, as FacT does; the authors' trainer and timm leave them out."
    )
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, examples=["0.1"], description="Share of the run's steps over which the rate rises to lr."
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        le=1_000_000_000,
        json_schema_extra={"null": "warmup_ratio"},
        description="Steps over which the rate rises to lr, in place of warmup_ratio.",
    )
    warmup_lr: float = Field(
        1e-6, ge=0, examples=["0"], description="Rate of the first step; at most lr, to which the default is lowered."
    )
    min_lr: float = Field(
        1e-5, ge=0, examples=["0"], description="Rate to fall to; at most lr, to which the default is lowered."
    )
    schedule: Literal["cosine", "linear"] = Field("cosine", description="How the rate falls from lr to min_lr.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of head, order and dropout; adapter.seed is that of the masks."
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = Field(
        "auto",
        description="Precision of the products; auto: what accelerate launch was told, else bf16 where the device "
        "multiplies it natively, else float32.",
    )
    max_grad_norm: float | None = Field(
        None,
        gt=0,
        examples=["1.0"],
        json_schema_extra={"null": "no clipping"},
        description="Norm to which gradients are clipped.",
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Slices of a batch that go through the model one by one; at most batch_size."
    )

    select: Literal["last"] | None = Field(
        None,
        json_schema_extra={"null": "the best epoch on the rows for selection"},
        description="The epoch that a protocol with rows for selection ends with; last: as protocols without them.",
    )
    test: bool = Field(
        True,
        description="false, for tuning: the rows to test on stay unseen, and the value is that which selects the "
        "epoch.",
    )

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _read_no(cls, value: Any) -> Any:
        """YAML 1.1 reads a bare `no` as false; `null` was the word for `auto` up to 0.1.0."""
        return "no" if value is False else "auto" if value is None else value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.gradient_accumulation_steps > self.batch_size:
            limit = f"type at most train.batch_size = {self.batch_size}"
            refuse("gradient_accumulation_steps", self.gradient_accumulation_steps, limit)
        for name in ("warmup_lr", "min_lr"):
            rate = getattr(self, name)
            if rate <= self.lr:
                continue
            if name in self.model_fields_set:
                refuse(name, rate, f"type at most train.lr = {self.lr}, or leave it out")
            self.derive(name, self.lr)
        return self

    def schedule_of(self, total_steps: int) -> Schedule:
        """The learning rates of a run of so many optimizer steps.

        Raises:
            UserError: If the warm-up would not end within the run.
        """
        warmup = self.warmup_steps
        if warmup is None:
            warmup = min(round(self.warmup_ratio * total_steps), total_steps - 1)
        if warmup >= total_steps:
            raise UserError(
                f"train.warmup_steps is {warmup}; type a number below the run's {total_steps} steps, "
                "or null for the share train.warmup_ratio"
            )
        return Schedule(self.lr, total_steps, warmup, self.warmup_lr, self.min_lr, self.schedule)
