"""A frozen linear layer and its low-rank increments as one step of autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from capaboost_core.errors import UserError
from capaboost_core.methods.lowered import lowered
from capaboost_core.sharing.spread import transformed


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
    itself, in its own precision: no copy. A backward pass that is differentiated itself computes the hidden anew.

    Args:
        x: (..., in).
        weight: (out, in), frozen or not.
        bias: (out), or None.
        slices: (start, stop) ranges of the output.
        a: (len(slices) * rank, in), A of each slice under that of the one before.
        b: (rank, sum of widths), B^T of each slice beside that of the one before.
        scaling: The factor of the increments.
        dropped: What the increments see in place of x, if that is not x.

    Raises:
        UserError: In a backward pass that is to be differentiated, if autocast has lowered x for the forward pass.
    """
    dtype = precision(x)
    a, b, dropped = a.to(dtype), b.to(dtype), dropped if dropped is None else dropped.to(dtype)
    if transformed():
        return _plain(x.to(dtype), dropped, weight, bias, slices, a, b, scaling)
    return _IncrementedLinear.apply(x, dropped, weight, bias, slices, a, b, scaling)


def _plain(x, dropped, weight, bias, slices, a, b, scaling) -> Tensor:
    """The same in operators that torch.func and forward-mode differentiation know."""
    out = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    seen = x if dropped is None else dropped
    hidden = (seen @ a.T).reshape(-1, len(a))
    return out + scaling * increments(hidden, b, slices, out.shape[-1]).view(out.shape)


def precision(x: Tensor) -> torch.dtype:
    """What a linear layer computes in; autocast lets double precision be."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):  # the meta device has none
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _IncrementedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dropped, weight, bias, slices, a, b, scaling):
        ctx.dtype, given = x.dtype, x
        x = lowered(x, a.dtype)
        seen = _rows(x if dropped is None else dropped)
        hidden = seen @ a.T  # before the large product, while what was just computed is in the cache
        out = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            out = out + scaling * increments(hidden, b, slices, out.shape[-1]).view(out.shape)
        else:
            out_rows = out.view(-1, out.shape[-1])
            for columns, at_hidden, at_b in _places(slices, len(b)):
                out_rows[:, columns].addmm_(hidden[:, at_hidden], b[:, at_b], alpha=scaling)
        needs_x = dropped is None or ctx.needs_input_grad[2]
        ctx.save_for_backward(x if needs_x else None, dropped, weight, hidden, a, b)
        ctx.slices, ctx.scaling, ctx.shape, ctx.lowered = slices, scaling, x.shape, needs_x and x is not given
        return out  # and not a view made here, which a model could not change in place

    @staticmethod
    def backward(ctx, grad):
        x, dropped, weight, hidden, a, b = ctx.saved_tensors
        needs_x, needs_dropped, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        seen = _rows(x if dropped is None else dropped)
        grad = grad.reshape(-1, weight.shape[0])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad_hidden, grad_b = _differentiable(ctx, grad, seen, a, b)
        else:
            grad_hidden, grad_b = _in_place(ctx, grad, hidden, b)
        grad_a = grad_hidden.T @ seen  # as in forward: the small products come before the large one
        grad_x = grad_dropped = None
        if needs_x and dropped is None:
            grad_x = (grad_hidden @ a).to(grad.dtype)  # a backward pass within autocast has lowered it
            grad_x = grad_x.addmm_(grad, weight.to(grad.dtype)).view(ctx.shape).to(ctx.dtype)
        elif needs_x:
            grad_x = (grad @ weight.to(grad.dtype)).view(ctx.shape).to(ctx.dtype)
        if needs_dropped:
            grad_dropped = (grad_hidden @ a).view(ctx.shape)
        grad_weight = grad.T @ _rows(x) if needs_weight else None
        grad_bias = grad.sum(0) if needs_bias else None
        return grad_x, grad_dropped, grad_weight, grad_bias, None, grad_a, grad_b, None


def _in_place(ctx, grad: Tensor, hidden: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the hidden values and of B^T, written to their places."""
    places = list(_places(ctx.slices, len(b)))
    grad_hidden, grad_b = torch.empty_like(hidden), torch.empty_like(b)
    for columns, at_hidden, at_b in places:
        grad_hidden[:, at_hidden].addmm_(grad[:, columns], b[:, at_b].T, beta=0, alpha=ctx.scaling)
    for columns, at_hidden, at_b in places:
        grad_b[:, at_b].addmm_(hidden[:, at_hidden].T, grad[:, columns], beta=0, alpha=ctx.scaling)
    return grad_hidden, grad_b


def _differentiable(ctx, grad: Tensor, seen: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same as functions of what the layer was given, for derivatives of the gradients."""
    if ctx.lowered:
        raise UserError(
            "a lowered copy of an adapted layer's input has no second derivatives; leave autocast out of the passes "
            "whose gradients are differentiated (create_graph=True)"
        )
    hidden, places = seen @ a.T, list(_places(ctx.slices, len(b)))
    grad_hidden = [grad[:, columns] @ b[:, at_b].T for columns, _, at_b in places]
    grad_b = [hidden[:, at_hidden].T @ grad[:, columns] for columns, at_hidden, _ in places]
    return ctx.scaling * torch.cat(grad_hidden, 1), ctx.scaling * torch.cat(grad_b, 1)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


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
