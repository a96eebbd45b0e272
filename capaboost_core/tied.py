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

    def copies(self) -> Tensor:
        """The d masked views of the weight, stacked: (d, out, in)."""
        if self.unmasked:
            dense = self.packed.view(self.bits.shape).expand(self.num_tied, *self.bits.shape)
            return self._redrawn(dense) if self.dropped else dense
        # An entry that is not kept reads a neighbour and is then masked: no branch, no dynamic shape.
        position = (self.bits != 0).flatten().cumsum(0).sub_(1).clamp_(min=0)
        dense = self.packed.gather(0, position).view(self.bits.shape)
        shifts = torch.arange(self.num_tied, device=dense.device).view(-1, 1, 1)
        return dense * ((self.bits >> shifts) & 1).to(dense.dtype)

    def _redrawn(self, dense: Tensor) -> Tensor:
        """Fresh masks at each training step (the paper's dropout ablation); their mean in evaluation."""
        if self.training:
            return dense * (torch.rand(dense.shape, device=dense.device) >= self.dropped).to(dense.dtype)
        return dense * (1 - self.dropped)

    def extra_repr(self) -> str:
        shape = tuple(self.bits.shape)
        return f"shape={shape}, num_tied={self.num_tied}, kept={self.packed.numel()}/{self.bits.numel()}"
