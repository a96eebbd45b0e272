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

from dataclasses import dataclass

import torch
from torch import nn

from capaboost_core.injection import adapted_layers
from capaboost_core.modes import disabled
from capaboost_core.report.flop_handles import is_negligible
from capaboost_core.report.flop_modes import (
    Call,
    Inputs,
    backward_operators,
    forward_operators,
    forward_outputs,
)
from capaboost_core.report.tied_products import layer_calls, tied_products


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
        with disabled([layer for layer in adapted_layers(model) if not layer.traced]):
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
