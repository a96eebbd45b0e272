"""Multiply-adds of a model, before and after adaptation, in a forward pass or in a training step.

Convention: one multiply-add is 1, as fvcore counts and half of what torch's FlopCounterMode counts. Counted are
matrix products, convolutions and the two products of an attention, masked positions included. All else, such as
norms, activations and the making of masked weights, is listed by operator with the number of its occurrences.

Forward: fvcore traces the model with its additions disabled. To that come the products of each addition, rows of
the layer's input times entries of its tied weights, whatever way the layer computes them.

Backward: the operators that autograd runs from all outputs to the trainable parameters, as torch dispatches them.
So frozen weights get no weight gradient, and layers before the first trainable one no backward pass. Attention runs
as plain products: what fused kernels compute a second time is not counted.

`executed` is what dense kernels do: d * numel multiply-adds for each row and tied weight. `effective` has
d * round(density * numel) instead, in the product itself, in the gradient of the weight, and in that of the other
factor where one is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.inject import adapted_layers, disable, injection_of
from capaboost_core.report.flop_modes import (
    Call,
    Inputs,
    backward_operators,
    forward_operators,
    forward_outputs,
    untraced,
)
from capaboost_core.tied import TiedWeight


@dataclass(frozen=True)
class FlopCounts:
    """Multiply-adds, one counted as 1, of all examples of the inputs together.

    Operators have fvcore's names. Besides there are `tied`, the products with tied weights, `tied_backward`, theirs
    in the backward pass, and `backward`, all others there.

    Attributes:
        executed_by_operator: What dense kernels do.
        effective_by_operator: The same with just the kept entries of masked weights.
        unsupported: Occurrences of the operators that are not counted, because they are no products. A
            `prim::PythonOp` is an autograd function as a whole; those of adapted layers hold the tied products.
    """

    executed_by_operator: dict[str, int]
    effective_by_operator: dict[str, int]
    unsupported: dict[str, int]

    @property
    def executed(self) -> int:
        return sum(self.executed_by_operator.values())

    @property
    def effective(self) -> int:
        return sum(self.effective_by_operator.values())


def count_flops(model: nn.Module, inputs: Inputs, backward: bool = False) -> FlopCounts:
    """Count a forward pass or, with `backward`, a training step without loss and optimizer.

    The model runs in its own mode on its own device, a few times. The meta device takes no memory and little time;
    there transformers cannot look into tokens and masks, so give its models `inputs_embeds` alone.
    Disabled and merged additions cost nothing. Gradients and random numbers of the caller stay as they are.

    Args:
        model: A base model, or one adapted by this package.
        inputs: A tensor, a tuple of tensors, or a dict of keyword arguments.
        backward: Count the backward pass too.

    Raises:
        UserError: If the inputs are no tensors, or nothing is trainable in a training step.
    """
    call = Call(model, inputs)
    with torch.random.fork_rng({p.device for p in model.parameters() if p.device.type == "cuda"}):
        with disable(model):
            counts, _ = forward_operators(call)
        with _layer_calls(model) as layer_calls:
            _, others = forward_operators(call)
        if backward:
            with _layer_calls(model) as layer_calls:  # the same calls, now with gradients
                outputs = forward_outputs(call)
            counts["backward"], more = backward_operators(call, outputs)
            others += more
    dense, kept = (_tied(layer_calls, entries, backward) for entries in (_dense, partial(_kept, model)))
    counts["backward"] -= dense["tied_backward"]
    return FlopCounts(_nonzero(counts | dense), _nonzero(counts | kept), dict(others))


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class _LayerCall:
    """An adapted layer was called with so many rows of input; `needs_gradient` says whether these need one."""

    layer: Adapted
    rows: int
    needs_gradient: bool


@contextmanager
def _layer_calls(model: nn.Module) -> Iterator[list[_LayerCall]]:
    """Note each call of a layer whose addition is at work."""
    calls: list[_LayerCall] = []

    def note(layer: Adapted, args: tuple, kwargs: dict) -> None:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with untraced():
            calls.append(_LayerCall(layer, x.numel() // x.shape[-1], x.requires_grad))

    working = [layer for layer in adapted_layers(model) if layer.enabled and not getattr(layer, "merged", False)]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in working]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _tied(calls: list[_LayerCall], entries: Callable[[TiedWeight], int], backward: bool) -> Counter[str]:
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


def _dense(weight: TiedWeight) -> int:
    return weight.num_tied * weight.bits.numel()


def _kept(model: nn.Module, weight: TiedWeight) -> int:
    """The ones of all masks; from the configuration, as a mask on the meta device has no data."""
    config = injection_of(model).config
    mean = config.mask == "dropout" and not weight.training  # its redrawn masks have a dense mean
    return weight.num_tied * round((1.0 if mean else config.density) * weight.bits.numel())
