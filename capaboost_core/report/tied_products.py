"""Multiply-adds of additions, from the calls of adapted layers, however a layer computes its products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.injection import adapted_layers
from capaboost_core.report.flop_modes import Call, Inputs, untraced


def count_added(model: nn.Module, inputs: Inputs) -> int:
    """Effective multiply-adds that a method adds to a forward pass: those of `count_flops` without its traces.

    The model runs once, in its own mode on its own device.

    Args:
        model: An adapted model.
        inputs: A tensor, a tuple of tensors, or a dict of keyword arguments.
    """
    call = Call(model, inputs)
    with torch.no_grad(), layer_calls(model) as calls:
        call(*call.inputs)
    return tied_products(calls, "kept", backward=False)["tied"]


@dataclass(frozen=True)
class LayerCall:
    """A call of an adapted layer with `rows` rows of input; `needs_gradient`: whether the input needs a gradient."""

    layer: Adapted
    rows: int
    needs_gradient: bool


@contextmanager
def layer_calls(model: nn.Module) -> Iterator[list[LayerCall]]:
    """Record each call of a layer whose addition is enabled."""
    calls: list[LayerCall] = []

    def note(layer: Adapted, args: tuple, kwargs: dict) -> None:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with untraced():
            calls.append(LayerCall(layer, x.numel() // x.shape[-1], x.requires_grad))

    working = [layer for layer in adapted_layers(model) if layer.enabled and not getattr(layer, "merged", False)]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in working]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def tied_products(calls: list[LayerCall], kind: Literal["executed", "kept"], backward: bool) -> Counter[str]:
    """Multiply-adds of the additions: `tied`, and with `backward` those of their gradients as `tied_backward`."""
    counts = Counter()
    for call in calls:
        for product in call.layer.products(call.needs_gradient):
            number = (1 if product.per_call else call.rows) * getattr(product, kind)
            counts["tied"] += number
            counts["tied_backward"] += backward * number * product.gradients
    return counts
