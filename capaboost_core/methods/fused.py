"""A frozen linear layer and its low-rank increments as one step of autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from capaboost_core.methods.lowered import lowered


def incremented_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slices: Sequence[tuple[int, int]],
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropped: Tensor | None = None,
) -> Tensor:
    """x W^T + b, plus scaling * x A^T B^T on each slice of the output, in the precision of x or of autocast.

    Per call there is one large product, one with all A stacked, and one small product for each slice that
    adds to the output in place; the gradient of x is one sum, made in place as well. For the backward pass
    autograd holds x (or what is given for it as `dropped`), the hidden x A^T, the factors, and the weight
    itself, in its own precision: no copy. It has first derivatives only.

    Args:
        x: (..., in).
        weight: (out, in), frozen or not.
        bias: (out), or None.
        slices: (start, stop) ranges of the output.
        a: (len(slices) * rank, in), A of each slice under that of the one before.
        b: (rank, sum of widths), B^T of each slice beside that of the one before.
        scaling: The factor of the increments.
        dropped: What the increments see in place of x, if that is not x.
    """
    dtype = precision(x)
    dropped = dropped if dropped is None else dropped.to(dtype)
    return _IncrementedLinear.apply(x, dropped, weight, bias, slices, a.to(dtype), b.to(dtype), scaling)


def precision(x: Tensor) -> torch.dtype:
    """What a linear layer computes in; autocast lets double precision be."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):  # the meta device has none
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _IncrementedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dropped, weight, bias, slices, a, b, scaling):
        ctx.dtype = x.dtype
        x = lowered(x, a.dtype)
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if dropped is None else dropped.reshape(rows.shape)
        hidden = seen @ a.T  # before the large product, while what was just computed is in the cache
        out = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            out = out + scaling * increments(hidden, b, slices, out.shape[-1]).view(out.shape)
        else:
            out_rows = out.view(-1, out.shape[-1])
            for columns, at_hidden, at_b in _places(slices, len(b)):
                out_rows[:, columns].addmm_(hidden[:, at_hidden], b[:, at_b], alpha=scaling)
        ctx.save_for_backward(rows if ctx.needs_input_grad[2] else None, seen, weight, hidden, a, b)
        ctx.slices, ctx.scaling, ctx.shape, ctx.undropped = slices, scaling, x.shape, dropped is None
        return out  # and not a view made here, which a model could not change in place

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, seen, weight, hidden, a, b = ctx.saved_tensors
        needs_x, needs_dropped, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad = grad.reshape(-1, weight.shape[0])
        places = list(_places(ctx.slices, len(b)))
        grad_hidden, grad_b = torch.empty_like(hidden), torch.empty_like(b)
        for columns, at_hidden, at_b in places:
            grad_hidden[:, at_hidden].addmm_(grad[:, columns], b[:, at_b].T, beta=0, alpha=ctx.scaling)
        for columns, at_hidden, at_b in places:
            grad_b[:, at_b].addmm_(hidden[:, at_hidden].T, grad[:, columns], beta=0, alpha=ctx.scaling)
        grad_a = grad_hidden.T @ seen  # as in forward: the small products come before the large one
        grad_x = grad_dropped = None
        if needs_x and ctx.undropped:
            grad_x = (grad_hidden @ a).to(grad.dtype)  # a backward pass within autocast has lowered it
            grad_x = grad_x.addmm_(grad, weight.to(grad.dtype)).view(ctx.shape).to(ctx.dtype)
        elif needs_x:
            grad_x = (grad @ weight.to(grad.dtype)).view(ctx.shape).to(ctx.dtype)
        if needs_dropped:
            grad_dropped = (grad_hidden @ a).view(ctx.shape)
        grad_weight = grad.T @ rows if needs_weight else None
        grad_bias = grad.sum(0) if needs_bias else None
        return grad_x, grad_dropped, grad_weight, grad_bias, None, grad_a, grad_b, None


def increments(hidden: Tensor, b: Tensor, slices: Sequence[tuple[int, int]], columns: int) -> Tensor:
    """The products (rows, columns) of all slices, zero in the columns between.

    For what cannot write to a slice in place: compilers fuse the sum with what reads it, and would copy an output for
    each slice; torch.onnx's tracer loses what is written to a view.
    """
    parts, end = [], 0
    for at_out, at_hidden, at_b in sorted(_places(slices, len(b)), key=lambda places: places[0].start):
        parts += [_zeros(hidden, at_out.start - end), hidden[:, at_hidden] @ b[:, at_b]]
        end = at_out.stop
    return torch.cat([*parts, _zeros(hidden, columns - end)], 1)


def _zeros(like: Tensor, columns: int) -> Tensor:
    return like.new_zeros(()).expand(like.shape[0], columns)


def _places(slices: Sequence[tuple[int, int]], rank: int) -> Iterator[tuple[slice, slice, slice]]:
    """The columns of each slice in the output, in the hidden values, and in B^T."""
    begin = 0
    for index, (start, stop) in enumerate(slices):
        end = begin + stop - start
        yield slice(start, stop), slice(index * rank, (index + 1) * rank), slice(begin, end)
        begin = end
