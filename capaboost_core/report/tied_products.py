"""Multiply-adds with tied weights, from the calls of adapted layers: whatever way a layer computes its products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.inject import adapted_layers
from capaboost_core.report.flop_modes import Call, Inputs, untraced
from capaboost_core.sharing.tied import TiedWeight


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
    return tied_products(calls, kept_entries, backward=False)["tied"]


@dataclass(frozen=True)
class LayerCall:
    """An adapted layer was called with so many rows of input; `needs_gradient` says whether these need one."""

    layer: Adapted
    rows: int
    needs_gradient: bool


@contextmanager
def layer_calls(model: nn.Module) -> Iterator[list[LayerCall]]:
    """Note each call of a layer whose addition is at work."""
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


def tied_products(calls: list[LayerCall], entries: Callable[[TiedWeight], int], backward: bool) -> Counter[str]:
    """Multiply-adds with tied weights.

    The first half of a layer's tied weights (A, down, keys) meets its input, or a frozen image of it; the second
    half (B, up, values) meets what the first half made.
    """
    counts = Counter()
    for call in calls:
        weights = list(call.layer.tied_weights().values())
        first, second = weights[: len(weights) // 2], weights[len(weights) // 2 :]
        inner = call.needs_gradient or any(weight.packed.requires_grad for weight in first)
        for weight, needs_gradient in [(w, call.needs_gradient) for w in first] + [(w, inner) for w in second]:
            products = call.rows * entries(weight)
            counts["tied"] += products
            counts["tied_backward"] += backward * products * (weight.packed.requires_grad + needs_gradient)
    return counts


def dense_entries(weight: TiedWeight) -> int:
    return weight.num_tied * weight.bits.numel()


def kept_entries(weight: TiedWeight) -> int:
    """The ones of all masks; of masks that are redrawn in training their mean, which evaluation has densely."""
    return round((1 - weight.dropped if weight.training else 1.0) * weight.ones)
