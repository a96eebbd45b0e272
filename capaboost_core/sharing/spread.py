"""From packed entries to masked copies, for one tied weight or for many at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad


def spread(bits: Sequence[Tensor], packed: Sequence[Tensor], flags: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The copies (..., d, r, width) of each weight, in a precision; the number of operators is that of one weight.

    Args:
        bits: The masks of each weight, (..., r, width), with the same r and width in all.
        packed: The kept entries of each, (kept, 1), of one type.
        flags: Which bit is whose, (d, 1, 1).
        dtype: Of the copies. Gradients are summed over the copies in the precision of `packed`.
    """
    if transformed():
        return tuple(_plain(b, p, flags, dtype) for b, p in zip(bits, packed, strict=True))
    return _Spread.apply(flags, dtype, *bits, *packed)


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which take operators alone."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _plain(bits: Tensor, packed: Tensor, flags: Tensor, dtype: torch.dtype) -> Tensor:
    """One weight's copies: each entry is read from its place among those kept, or is the zero behind them."""
    kept = bits.flatten().bool()
    place = torch.where(kept, kept.cumsum(0) - 1, packed.numel())
    dense = F.pad(packed.to(dtype).flatten(), (0, 1))[place].view(bits.shape)
    return dense.unsqueeze(-3) * _masks(bits, flags)


class _Spread(torch.autograd.Function):
    """For the backward pass it holds the bits, which modules hold anyway, and saves no tensor.

    So a forward pass recomputed under gradient checkpointing saves as many tensors as the first, whether a weight's
    copies are made alone there or were made with others' before.
    """

    @staticmethod
    def forward(ctx, flags, dtype, *bits_and_packed):
        bits, packed = _halves(bits_and_packed)
        ctx.bits, ctx.flags = bits, flags
        ctx.set_materialize_grads(False)  # a weight without a gradient keeps none
        ctx.sizes, ctx.dtype = [p.numel() for p in packed], packed[0].dtype
        stacked, values = _stack(bits), _cat(packed).to(dtype)
        dense = values.new_zeros(stacked.shape).masked_scatter_(stacked.bool(), values)
        copies = (dense.unsqueeze(-3) * _masks(stacked, flags)).split([_blocks(b) for b in bits])
        return tuple(part.view(*b.shape[:-2], *part.shape[1:]) for part, b in zip(copies, bits, strict=True))

    @staticmethod
    def backward(ctx, *grads):
        stacked = _stack(ctx.bits)
        some = next((grad for grad in grads if grad is not None), None)
        if some is None:
            return (None,) * (2 + 2 * len(ctx.bits))
        shape = (-1, *some.shape[-3:])
        parts = [
            some.new_zeros(_blocks(b), *shape[1:]) if grad is None else grad.reshape(shape)
            for grad, b in zip(grads, ctx.bits, strict=True)
        ]
        dense = (_cat(parts) * _masks(stacked, ctx.flags)).sum(-3, dtype=ctx.dtype).flatten()
        # A running count numbers the kept entries from 1. One that is not kept adds its zero to the one before it:
        # no branch, and no list of places, whose length the host would have to wait for.
        place = stacked.flatten().bool().cumsum(0)
        entries = dense.new_zeros(sum(ctx.sizes) + 1).scatter_add_(0, place, dense)[1:].unsqueeze(1)
        found = [
            part if grad is not None else None for part, grad in zip(entries.split(ctx.sizes), grads, strict=True)
        ]
        return None, None, *(None for _ in ctx.bits), *found


def _halves(values: tuple) -> tuple[tuple, tuple]:
    return values[: len(values) // 2], values[len(values) // 2 :]


def _blocks(bits: Tensor) -> int:
    return bits.numel() // (bits.shape[-2] * bits.shape[-1])


def _stack(bits: Sequence[Tensor]) -> Tensor:
    """(blocks of all, r, width)."""
    return _cat([b.reshape(-1, *b.shape[-2:]) for b in bits])


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _masks(bits: Tensor, flags: Tensor) -> Tensor:
    """The d masks (..., d, r, width) as bytes of 0 and 1, far faster on a CPU than booleans."""
    return (bits.unsqueeze(-3) & flags).sign()
