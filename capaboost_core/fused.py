"""A frozen linear layer and its low-rank increments as one step of autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def incremented_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slices: Sequence[tuple[int, int]],
    factors: Sequence[tuple[Tensor, Tensor]],
    dropped: Tensor | None = None,
) -> Tensor:
    """x W^T + b, plus x A^T B^T on each slice of the output, in the precision of x or of autocast.

    Per call there is one large product, one with all A stacked, and one small product for each slice that
    adds to the output in place; the gradient of x is one sum, made in place as well. For the backward pass
    autograd holds x (or what is given for it as `dropped`), the hidden x A^T, the factors, and the weight
    itself, in its own precision: no copy. It has first derivatives only.

    Args:
        x: (..., in).
        weight: (out, in), frozen or not.
        bias: (out), or None.
        slices: (start, stop) ranges of the output.
        factors: A (rank, in) and B (stop - start, rank) of each slice; the rank is the same for all.
        dropped: What the increments see in place of x, if that is not x.
    """
    dtype = _precision(x)
    a = torch.cat([a for a, _ in factors]).to(dtype)
    dropped = dropped if dropped is None else dropped.to(dtype)
    return _IncrementedLinear.apply(x.to(dtype), dropped, weight, bias, slices, a, *(b.to(dtype) for _, b in factors))


def _precision(x: Tensor) -> torch.dtype:
    """What a linear layer computes in; autocast lets double precision be."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):  # the meta device has none
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _IncrementedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dropped, weight, bias, slices, a, *bs):
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if dropped is None else dropped.reshape(rows.shape)
        out = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        out_rows, hidden = out.view(-1, out.shape[-1]), seen @ a.T
        for (start, stop), b, part in zip(slices, bs, hidden.chunk(len(bs), 1), strict=True):
            out_rows[:, start:stop].addmm_(part, b.T)
        ctx.save_for_backward(rows if ctx.needs_input_grad[2] else None, seen, weight, hidden, a, *bs)
        ctx.slices, ctx.shape, ctx.undropped = slices, x.shape, dropped is None
        return out  # and not a view made here, which a model could not change in place

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, seen, weight, hidden, a, *bs = ctx.saved_tensors
        needs_x, needs_dropped, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad = grad.reshape(-1, weight.shape[0])
        parts = [grad[:, start:stop] for start, stop in ctx.slices]
        grad_hidden = torch.cat([part @ b for part, b in zip(parts, bs, strict=True)], 1)
        grad_x = grad_dropped = None
        if needs_x and ctx.undropped:
            grad_x = (grad_hidden @ a).to(grad.dtype)  # a backward pass within autocast has lowered it
            grad_x = grad_x.addmm_(grad, weight.to(grad.dtype)).view(ctx.shape)
        elif needs_x:
            grad_x = (grad @ weight.to(grad.dtype)).view(ctx.shape)
        if needs_dropped:
            grad_dropped = (grad_hidden @ a).view(ctx.shape)
        hiddens = hidden.chunk(len(bs), 1)
        return (
            grad_x,
            grad_dropped,
            grad.T @ rows if needs_weight else None,
            grad.sum(0) if needs_bias else None,
            None,
            grad_hidden.T @ seen,
            *((part_hidden.T @ part).T for part_hidden, part in zip(hiddens, parts, strict=True)),
        )
