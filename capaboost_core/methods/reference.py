"""CapaBoost-LoRA in 20 lines: the text of Eq. 4 (arXiv 2407.01320), which the fast path is tested against.

The shared weights are dense, a mask is a separate tensor, and nothing else of the library computes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def increments(
    x: Tensor, A: Tensor, B: Tensor, masks_A: Sequence[Tensor], masks_B: Sequence[Tensor], scale: float
) -> Iterator[Tensor]:
    """s * x (A * ma_i)^T (B * mb_i)^T for each of the d modules; x (..., in), A (r, in), B (out, r) -> (..., out)."""
    for mask_A, mask_B in zip(masks_A, masks_B, strict=True):
        hidden = F.linear(x, A * mask_A)
        yield F.linear(hidden, scale * (B * mask_B))


class LoopedLinear(nn.Module):
    """y = x W^T + b, and on each slice of y the sum of its d increments; masks have the density on average only.

    Args:
        base: The frozen layer.
        slices: (start, stop) ranges of the output, with A and B of their own.
        rank: r of one module.
        num_tied: d.
        density: Probability that a mask keeps an entry.
        scale: s.
    """

    def __init__(
        self,
        base: nn.Linear,
        slices: Sequence[tuple[int, int]],
        rank: int,
        num_tied: int,
        density: float,
        scale: float = 1.0,
    ):
        super().__init__()
        self.base, self.slices, self.scale = base, slices, scale
        self.A = nn.ParameterList(torch.randn(rank, base.in_features) / rank for _ in slices)
        self.B = nn.ParameterList(torch.zeros(stop - start, rank) for start, stop in slices)
        self.masks_A, self.masks_B = (
            nn.ParameterList(
                nn.Parameter(torch.rand(num_tied, *weight.shape) < density, requires_grad=False) for weight in weights
            )
            for weights in (self.A, self.B)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        out = self.base(x)
        modules = zip(self.slices, self.A, self.B, self.masks_A, self.masks_B, strict=True)
        for (start, stop), A, B, masks_A, masks_B in modules:
            for increment in increments(x, A, B, masks_A, masks_B, self.scale):
                out[..., start:stop] += increment
        return out
