"""An independent reference: d LoRA modules in a loop, whose masks are multiplied at every step.

It is the text of Eq. 4 line by line: the shared weight is dense, a mask is a separate tensor, and
nothing of `capaboost_core` computes here. Its masks have the density on average only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoopedLinear(nn.Module):
    """y = x W^T + b, and on each slice of y the increment sum_i x (A * ma_i)^T (B * mb_i)^T.

    Args:
        base: The frozen layer.
        slices: (start, stop) ranges of the output with an increment each.
        rank: r of one module.
        num_tied: d.
        density: Probability that a mask keeps an entry.
    """

    def __init__(self, base: nn.Linear, slices: tuple[tuple[int, int], ...], rank: int, num_tied: int, density: float):
        super().__init__()
        self.base, self.slices = base, slices
        self.A = nn.ParameterList(torch.randn(rank, base.in_features) / rank for _ in slices)
        self.B = nn.ParameterList(torch.zeros(stop - start, rank) for start, stop in slices)
        for name, weights in (("mask_A", self.A), ("mask_B", self.B)):
            for index, weight in enumerate(weights):
                mask = torch.rand(num_tied, *weight.shape) < density
                self.register_buffer(f"{name}_{index}", mask)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        out = self.base(x)
        for index, (start, stop) in enumerate(self.slices):
            masks = zip(getattr(self, f"mask_A_{index}"), getattr(self, f"mask_B_{index}"), strict=True)
            for mask_a, mask_b in masks:
                hidden = F.linear(x, self.A[index] * mask_a)
                out[..., start:stop] += F.linear(hidden, self.B[index] * mask_b)
        return out
