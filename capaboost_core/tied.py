"""The shared weight: one parameter of exactly the kept entries, seen as d masked copies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from capaboost_core.config import CapaBoostConfig
from capaboost_core.masks import mask_bits


class TiedWeight(nn.Module):
    """A weight w of shape (out, in) that d modules share, module i seeing w * m_i (Eq. 3).

    The parameter `packed` holds, in row-major order, just the entries that some mask keeps, so it has
    (1 - (1 - density)^d) * numel entries in expectation, 0.75 * numel at d = 2 and density 0.5. An entry
    that no mask keeps exists nowhere: not in the gradient, the optimizer or the file.

    Worked example, d = 2: w = [[a, b, c, d]], m_1 = 1100, m_2 = 0101; packed = [a, b, d], and `copies()`
    is [[[a, b, 0, 0]], [[0, b, 0, d]]] of shape (2, 1, 4).

    Args:
        config: Gives num_tied, density and the masks.
        path: Module path that keys the masks.
        name: Name of the weight within the module, which keys them too.
        initial: Dense initial values (out, in); the kept ones become the parameter.
    """

    def __init__(self, config: CapaBoostConfig, path: str, name: str, initial: Tensor):
        super().__init__()
        masks = mask_bits(config, path, name, tuple(initial.shape))
        kept = torch.from_numpy(np.flatnonzero(masks)).to(initial.device)
        self.num_tied = config.num_tied
        self.dropped = 1 - config.density if config.mask == "dropout" else 0.0
        self.unmasked = bool((masks == (1 << config.num_tied) - 1).all())
        self.register_buffer("bits", torch.from_numpy(masks).to(initial.device), persistent=False)
        self.packed = nn.Parameter(initial.flatten()[kept])

    def copies(self, dim: int = 0) -> Tensor:
        """The d masked views of the weight, stacked before dimension `dim`: (d, out, in) or (out, d, in)."""
        if not self.unmasked:
            return _Spread.apply(self.packed, self.bits, self.num_tied, dim)
        dense = self.packed.view(self.bits.shape).unsqueeze(dim)
        dense = dense.expand(*(self.num_tied if i == dim else -1 for i in range(3)))
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
    def forward(ctx, packed, bits, num_tied, dim):
        ctx.save_for_backward(bits)
        ctx.num_tied, ctx.dim, ctx.kept = num_tied, dim, packed.numel()
        dense = packed.gather(0, _positions(bits)).view(bits.shape)
        return dense.unsqueeze(dim) * _masks(bits, num_tied, dim)

    @staticmethod
    def backward(ctx, grad):
        (bits,) = ctx.saved_tensors
        dense = (grad * _masks(bits, ctx.num_tied, ctx.dim)).sum(ctx.dim).flatten()
        return dense.new_zeros(ctx.kept).scatter_add_(0, _positions(bits), dense), None, None, None


def _positions(bits: Tensor) -> Tensor:
    """Where each entry lies in `packed`. One that is not kept reads a neighbour, to be masked: no branch, no sync."""
    return (bits != 0).flatten().cumsum(0).sub_(1).clamp_(min=0)


def _masks(bits: Tensor, num_tied: int, dim: int) -> Tensor:
    """The d boolean masks, stacked before dimension `dim`."""
    copies = 1 << torch.arange(num_tied, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(dim) & copies.view([-1 if i == dim else 1 for i in range(3)])) != 0
