"""The hooks of a model's method that the loop calls around its steps; a model without an adapter has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from capaboost_core.injection import HOOKED
from capaboost_core.wrappers import unwrap


class Hooks:
    """The hooks of `Method`, bound to a model."""

    def __init__(self, model: nn.Module):
        self.model = unwrap(model)
        injection = getattr(self.model, "capaboost", None)
        self.method = injection.config if injection else None
        if injection:
            setattr(self.model, HOOKED, True)

    def lr_factor(self, name: str) -> float:
        return self.method.lr_factor(name) if self.method else 1.0

    def objective(self, loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
        return self.method.objective(loss_of, model, batch) if self.method else loss_of(model, batch)

    def penalty(self) -> Tensor | None:
        return self.method.penalty(self.model) if self.method else None

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        if self.method:
            self.method.after_step(self.model, step, steps)

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        return self.method.state(self.model) if self.method else {}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        if self.method and state:
            self.method.load_state(self.model, state)

    @torch.no_grad()
    def finish(self) -> None:
        if self.method:
            self.method.finish(self.model)


def copied(values: Any) -> Any:
    """Nested values with copies of the tensors."""
    if isinstance(values, Tensor):
        return values.detach().clone()
    if isinstance(values, dict):
        return {name: copied(value) for name, value in values.items()}
    return [copied(value) for value in values] if isinstance(values, list) else values
