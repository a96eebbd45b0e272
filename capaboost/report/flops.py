"""Multiply-adds of a model, before and after adaptation, in a forward pass or in a training step.

Convention: one multiply-add is 1, as fvcore counts and half of what torch's FlopCounterMode counts. Counted are
matrix products, convolutions and the two products of an attention, masked positions included. All other
operators are listed with the number of their occurrences, in two groups: those that are negligible by this
convention, such as norms, activations and the masking of weights, and those that are unknown.

Forward: fvcore traces the model with its additions disabled, but for those that change what frozen layers compute, as
prompts do. The products of each addition are counted on top: rows of the layer's input times entries of its tied
weights, however the layer computes them.

Backward: the operators that autograd runs from all outputs to the trainable parameters, as torch dispatches them.
So frozen weights get no weight gradient, and layers before the first trainable one no backward pass. Attention runs
as plain products: what fused kernels compute a second time is not counted.

`executed` is what dense kernels do: d * numel multiply-adds for each row and tied weight. `effective` has the ones of
all d masks instead, in the product itself, in the gradient of the weight, and in that of the other factor where one is
needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from capaboost.report.counting import (
    Call,
    Inputs,
    backward_operators,
    forward_operators,
    forward_outputs,
    is_negligible,
    untraced,
)
from capaboost_core.injection import adapted_layers
from capaboost_core.layers import Adapted
from capaboost_core.liveness import working_layers
from capaboost_core.modes import disabled


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

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in working_layers(model)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def tied_products(calls: list[LayerCall], kind: Literal["executed", "kept"], backward: bool) -> Counter[str]:
    """Multiply-adds of the additions: `tied`, and with `backward` those of their gradients as `tied_backward`."""
    counts = Counter()
    for call in calls:
        for product in call.layer.macs(call.needs_gradient):
            number = (1 if product.per_call else call.rows) * getattr(product, kind)
            counts["tied"] += number
            counts["tied_backward"] += backward * number * product.gradients
    return counts


@dataclass(frozen=True)
class FlopCounts:
    """Multiply-adds, one counted as 1, of all examples of the inputs together.

    Operators have fvcore's names, and three more: `tied`, products with tied weights; `tied_backward`, the same in
    the backward pass; `backward`, all others in the backward pass.

    Attributes:
        executed_by_operator: What dense kernels do.
        effective_by_operator: The same with just the kept entries of masked weights.
        negligible: Occurrences of non-matmul operators: element-wise ones, norms, softmax, copies.
        unsupported: Occurrences of unknown operators; matmuls in them are missing in the counts.
    """

    executed_by_operator: dict[str, int]
    effective_by_operator: dict[str, int]
    negligible: dict[str, int]
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
        UserError: If the inputs are not tensors, or nothing is trainable in a training step.
    """
    call = Call(model, inputs)
    with torch.random.fork_rng({p.device for p in model.parameters() if p.device.type == "cuda"}):
        with disabled([layer for layer in adapted_layers(model) if not layer.counted_in_trace]):
            counts, _ = forward_operators(call)
        with layer_calls(model) as calls:
            _, others = forward_operators(call, adapted_layers(model))
        if backward:
            with layer_calls(model) as calls:  # the same calls, now with gradients
                outputs = forward_outputs(call)
            counts["backward"], more = backward_operators(call, outputs)
            others += more
    dense, kept = (tied_products(calls, kind, backward) for kind in ("executed", "kept"))
    counts["backward"] -= dense["tied_backward"]
    negligible = {name: number for name, number in others.items() if is_negligible(name)}
    unsupported = {name: number for name, number in others.items() if name not in negligible}
    return FlopCounts(_nonzero(counts | dense), _nonzero(counts | kept), negligible, unsupported)


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}
