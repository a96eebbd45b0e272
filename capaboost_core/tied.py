"""The shared weight: one parameter of exactly the kept entries, seen as d masked copies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from capaboost_core.config import CapaBoostConfig


class TiedWeight(nn.Module):
    """A weight w of shape (..., r, width) that d modules share, module i seeing w * m_i (Eq. 3).

    The parameter `packed` holds, in row-major order, just the entries that some mask keeps, so it has
    (1 - (1 - density)^d) * numel entries in expectation, 0.75 * numel at d = 2 and density 0.5. An entry
    that no mask keeps exists nowhere: not in the gradient, the optimizer or the file.

    Worked example, d = 2: w = [[a, b, c, d]], m_1 = 1100, m_2 = 0101; packed = [a, b, d], and `copies()`
    is [[[a, b, 0, 0]], [[0, b, 0, d]]] of shape (2, 1, 4).

    Args:
        config: Gives num_tied and the kind of mask.
        masks: All d masks as `mask_bits` gives them, (..., r, width). The rank comes first, so that the copies of
            B and of up projections lie in memory like those of A: theirs are given transposed.
        initial: Dense initial values of the same shape; the kept ones become the parameter.
    """

    def __init__(self, config: CapaBoostConfig, masks: np.ndarray, initial: Tensor):
        super().__init__()
        kept = torch.from_numpy(np.flatnonzero(masks)).to(initial.device)
        self.num_tied = config.num_tied
        self.dropped = 1 - config.density if config.mask == "dropout" else 0.0
        self.ones = int(np.unpackbits(masks).sum())  # of all masks
        self.unmasked = self.ones == config.num_tied * masks.size
        flags = 1 << np.arange(config.num_tied, dtype=np.uint8).reshape(-1, 1, 1)
        for name, array in (("bits", np.ascontiguousarray(masks)), ("flags", flags)):
            self.register_buffer(name, torch.from_numpy(array).to(initial.device), persistent=False)
        self.packed = nn.Parameter(initial.flatten()[kept])

    def copies(self) -> Tensor:
        """The d masked views of the weight, (..., d, r, width)."""
        if not self.unmasked:
            return _Spread.apply(self.packed, self.bits, self.flags)
        dense = self.packed.view(self.bits.shape).unsqueeze(-3)
        dense = dense.expand(*dense.shape[:-3], self.num_tied, -1, -1)
        return self._redrawn(dense) if self.dropped else dense

    def _redrawn(self, dense: Tensor) -> Tensor:
        """Fresh masks at each training step (the paper's dropout ablation); their mean in evaluation."""
        if self.training:
            return dense * (torch.rand(dense.shape, device=dense.device) >= self.dropped).to(dense.dtype)
        return dense * (1 - self.dropped)

    def extra_repr(self) -> str:
        shape = tuple(self.bits.shape)
        return f"shape={shape}, num_tied={self.num_tied}, kept={self.packed.numel()}/{self.bits.numel()}"


class _Spread(torch.autograd.Function):
    """From the packed entries to the stacked masked views; the gradient sums over the views.

    For the backward pass it holds nothing but the bits, which the module holds anyway.
    """

    @staticmethod
    def forward(ctx, packed, bits, flags):
        ctx.save_for_backward(bits, flags)
        ctx.kept = packed.numel()
        dense = packed.new_zeros(bits.shape).masked_scatter_(bits.bool(), packed)
        return dense.unsqueeze(-3) * _masks(bits, flags)

    @staticmethod
    def backward(ctx, grad):
        bits, flags = ctx.saved_tensors
        dense = (grad * _masks(bits, flags)).sum(-3).flatten()
        # A running count numbers the kept entries from 1. One that is not kept adds its zero to the one before it:
        # no branch, and no list of places, whose length the host would have to wait for.
        place = bits.flatten().bool().cumsum(0)
        return dense.new_zeros(ctx.kept + 1).scatter_add_(0, place, dense)[1:], None, None


def _masks(bits: Tensor, flags: Tensor) -> Tensor:
    """The d masks (..., d, r, width) as bytes of 0 and 1, far faster on a CPU than booleans."""
    return (bits.unsqueeze(-3) & flags).sign()
