"""CapaBoost-LoRA: tied low-rank increments on a frozen linear layer."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Adapted, dropout_of, empty_beside
from capaboost_core.config import CapaBoostConfig
from capaboost_core.fused import incremented_linear
from capaboost_core.masks import mask_bits
from capaboost_core.plan import Target
from capaboost_core.tied import TiedWeight


class CapaLinear(Adapted, nn.Linear):
    """Linear layer plus alpha/r * sum_i (B * mb_i)(A * ma_i) on its output or on slices of it (Eq. 4).

    The d modules are one product of concatenated factors, [B_1 .. B_d][A_1; ..; A_d], of rank d*r; a
    step has two small products whatever d is. B starts at zero, so the output starts as the base's.

    Worked example: a fused qkv of width 768 with increments on q and v, r = 8, d = 2, x (64, 197, 768):
    out = x W^T + b is (64, 197, 2304); x A^T is (64, 197, 32), 16 columns for q and 16 for v; each
    times its B of (768, 16) is added to out[..., :768] and to out[..., 1536:].

    Args:
        base: The frozen layer to adopt.
        config: The adapter's configuration.
        target: Path of the layer, and the slices of its output that get an increment each.
    """

    def __init__(self, base: nn.Linear, config: CapaBoostConfig, target: Target):
        self.adopt(base, target.path)
        self.scaling, self.dropout, self.drops = config.scaling, dropout_of(config), config.dropout > 0
        self.slices = target.slices or ((0, self.out_features),)
        self.widths = [stop - start for start, stop in self.slices]
        a = empty_beside(base.weight, len(self.slices), config.r, self.in_features)
        bound = 1 / math.sqrt(self.in_features if config.init == "lora" else config.r)
        b = empty_beside(base.weight, config.r, sum(self.widths))
        masks_a, masks_b = self._masks(config)
        self.lora_A = TiedWeight(config, masks_a, nn.init.uniform_(a, -bound, bound))
        self.lora_B = TiedWeight(config, masks_b, nn.init.zeros_(b))
        self.register_buffer("unmerged_rows", None, persistent=False)
        self.train(base.training)

    def _masks(self, config: CapaBoostConfig) -> tuple[np.ndarray, np.ndarray]:
        """Of A for all slices (slices, r, in), and of B^T for all slices side by side (r, widths)."""
        of_a = [mask_bits(config, self.path, f"A.{i}", (config.r, self.in_features)) for i in range(len(self.slices))]
        of_b = [mask_bits(config, self.path, f"B.{i}", (width, config.r)).T for i, width in enumerate(self.widths)]
        return np.stack(of_a), np.concatenate(of_b, axis=1)

    @property
    def merged(self) -> bool:
        return self.unmerged_rows is not None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        if self.merged or not self.enabled:
            return F.linear(x, self.weight, self.bias)
        dropped = self.dropout(x) if self.drops and self.training else None
        return incremented_linear(x, self.weight, self.bias, self.slices, *self.factors(), self.scaling, dropped)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Concatenated over slices and copies: A (slices*d*r, in) and B^T (d*r, widths)."""
        return self.lora_A.copies().flatten(0, 2), self.lora_B.copies().flatten(0, 1)

    def factors_by_slice(self) -> list[tuple[Tensor, Tensor]]:
        """A (d*r, in) and alpha/r * B (width, d*r) of each slice, as evaluation sees them."""
        training = self.training
        a, b = self.eval().factors()
        self.train(training)
        return list(zip(a.chunk(len(self.slices)), (self.scaling * b.T).split(self.widths), strict=True))

    @torch.no_grad()
    def increments(self) -> list[Tensor]:
        """The (out, in) increment of each slice in single precision or better, as evaluation sees it."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return [b @ a for a, b in self.factors_by_slice()]

    @torch.no_grad()
    def merge(self) -> None:
        """Add the increments to the weight; the rows that change are kept, so that unmerging is exact."""
        if self.merged:
            return
        increments = self.increments()
        self.unmerged_rows = torch.cat([self.weight[start:stop] for start, stop in self.slices])
        for (start, stop), increment in zip(self.slices, increments, strict=True):
            rows = self.weight[start:stop]
            rows.copy_(rows.to(increment.dtype) + increment)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the kept rows back, bit for bit."""
        if not self.merged:
            return
        rows = self.unmerged_rows.split(self.widths)
        for (start, stop), original in zip(self.slices, rows, strict=True):
            self.weight[start:stop] = original
        self.unmerged_rows = None
