"""CapaBoost-LoRA: tied low-rank increments on a frozen linear layer."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Product, dropout_of, empty_like_weight, products_of
from capaboost_core.mergeable import Mergeable
from capaboost_core.methods.bottleneck import Filler
from capaboost_core.methods.fused import incremented_linear, precision
from capaboost_core.methods.scaled import Scaled
from capaboost_core.plan import Target
from capaboost_core.sharing.masks import mask_bits


class Incremented(Mergeable):
    """Linear layer plus s * sum_i (B * mb_i)(A * ma_i), s = `config.scale`, on its output or slices of it (Eq. 4).

    The d modules are one product of concatenated factors, [B_1 .. B_d][A_1; ..; A_d], of rank d*r; a
    step has two small products for any d. B starts at zero, so the output starts as the base's.

    Worked example: a fused qkv of width 768 with increments on q and v, r = 8, d = 2, x (64, 197, 768):
    out = x W^T + b is (64, 197, 2304); x A^T is (64, 197, 32), 16 columns for q and 16 for v; each
    times its B of (768, 16) is added to out[..., :768] and to out[..., 1536:].

    Merged, it computes x (W + increments)^T.

    Args:
        base: The frozen layer to adopt.
        config: The adapter's configuration.
        target: Path of the layer, and the slices of its output that get an increment each.
    """

    low_rank: ClassVar[bool] = True
    fan_in_fan_out: ClassVar[bool] = False  # peft's word: whether the weight is held as (in, out)

    def __init__(self, base: nn.Module, config: Scaled, target: Target):
        self.adopt(base, target.path)
        self.scaling, self.dropout, self.drops = config.scale, dropout_of(config.dropout), config.dropout > 0
        self.slices = target.slices or ((0, self.out_features),)
        self.widths = [stop - start for start, stop in self.slices]
        self.bound = bound = 1 / math.sqrt(self.in_features if config.init == "lora" else config.r)
        a = empty_like_weight(base.weight, len(self.slices), config.rows, self.in_features)
        self.lora_A = self.make_factor(config, "A", a, partial(nn.init.uniform_, a=-bound, b=bound))
        b = empty_like_weight(base.weight, config.rows, sum(self.widths))
        self.lora_B = self.make_factor(config, "B", b, nn.init.zeros_)
        self.allow_merging()
        self.train(base.training)

    def make_factor(self, config: Scaled, name: str, empty: Tensor, fill: Filler) -> nn.Module:
        """A of all slices (slices, r, in), or B^T of all slices side by side (r, widths); an empty one is given."""
        parts = self.widths if name == "B" else ()
        return config.make_weight(name, lambda: self.masks(config, name), fill(empty), fill, parts)

    def masks(self, config: Scaled, name: str) -> np.ndarray:
        """Of the factor "A" or "B"; names that go on from there have masks of their own."""
        if name.startswith("A"):
            shape = (config.rows, self.in_features)
            return np.stack([mask_bits(config, self.path, f"{name}.{i}", shape) for i in range(len(self.slices))])
        shapes = [(width, config.rows) for width in self.widths]
        return np.concatenate([mask_bits(config, self.path, f"{name}.{i}", s).T for i, s in enumerate(shapes)], axis=1)

    @property
    def matrix(self) -> Tensor:
        """The frozen weight as (out, in)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out).

        Raises:
            UserError: In a training step while merged, which would leave the increments without gradients.
        """
        if self.disabled:
            return F.linear(x, self.matrix, self.bias)
        sums = self.current_sums()
        if sums is not None:
            return F.linear(x, sums.weight, self.bias)
        dropped = self.dropout(x) if self.drops and self.training else None
        factors = self.factors(dtype=precision(x))
        return incremented_linear(x, self.matrix, self.bias, self.slices, *factors, self.scaling, dropped)

    def factors(self, training: bool | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Concatenated over slices and copies: A (slices*d*r, in) and B^T (d*r, widths); see `TiedWeight.copies`."""
        training = self.training if training is None else training
        return self.factor("A", training, dtype).flatten(0, 2), self.factor("B", training, dtype).flatten(0, 1)

    def factor(self, name: str, training: bool, dtype: torch.dtype | None) -> Tensor:
        """The copies of A (slices, d, r, in), or of B^T (d, r, widths)."""
        return getattr(self, f"lora_{name}").copies(training, dtype)

    def factors_by_slice(self) -> list[tuple[Tensor, Tensor]]:
        """A (d*r, in) and s * B (width, d*r) of each slice, as evaluation sees them."""
        a, b = self.factors(training=False)
        return list(zip(a.chunk(len(self.slices)), (self.scaling * b.T).split(self.widths), strict=True))

    def products(self, needs_gradient: bool) -> list[Product]:
        return products_of([[self.lora_A], [self.lora_B]], needs_gradient)

    @torch.no_grad()
    def increments(self) -> list[Tensor]:
        """The (out, in) increment of each slice in single precision or better, as evaluation sees it."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return [b @ a for a, b in self.factors_by_slice()]

    def summed(self) -> tuple[Tensor, None]:
        """The weight with its increments, (out, in), in the weight's precision."""
        total = self.matrix.detach().clone()
        for (start, stop), increment in zip(self.slices, self.increments(), strict=True):
            rows = total[start:stop]
            rows.copy_(rows.to(increment.dtype) + increment)
        return total, None

    def as_stored(self, weight: Tensor) -> Tensor:
        return weight.T.contiguous() if self.fan_in_fan_out else weight


class CapaLinear(Incremented, nn.Linear):
    """`nn.Linear` with increments."""
