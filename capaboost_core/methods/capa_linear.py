"""CapaBoost-LoRA: tied low-rank increments on a frozen linear layer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.adapted import Adapted, dropout_of, empty_like_weight
from capaboost_core.errors import UserError
from capaboost_core.methods.fused import incremented_linear, precision
from capaboost_core.methods.scaled import Scaled
from capaboost_core.plan import Target
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight


class Incremented(Adapted):
    """Linear layer plus alpha/r * sum_i (B * mb_i)(A * ma_i) on its output or on slices of it (Eq. 4).

    The d modules are one product of concatenated factors, [B_1 .. B_d][A_1; ..; A_d], of rank d*r; a
    step has two small products for any d. B starts at zero, so the output starts as the base's.

    Worked example: a fused qkv of width 768 with increments on q and v, r = 8, d = 2, x (64, 197, 768):
    out = x W^T + b is (64, 197, 2304); x A^T is (64, 197, 32), 16 columns for q and 16 for v; each
    times its B of (768, 16) is added to out[..., :768] and to out[..., 1536:].

    Merged, it computes x (W + increments)^T with a sum made once and stored separately: W itself never changes,
    and the state dict is the same, merged or not.

    Args:
        base: The frozen layer to adopt.
        config: The adapter's configuration.
        target: Path of the layer, and the slices of its output that get an increment each.
    """

    mergeable: ClassVar[bool] = True
    fan_in_fan_out: ClassVar[bool] = False  # peft's word: whether the weight is held as (in, out)

    def __init__(self, base: nn.Module, config: Scaled, target: Target):
        self.adopt(base, target.path)
        self.scaling, self.dropout, self.drops = config.scaling, dropout_of(config.dropout), config.dropout > 0
        self.slices = target.slices or ((0, self.out_features),)
        self.widths = [stop - start for start, stop in self.slices]
        a = empty_like_weight(base.weight, len(self.slices), config.r, self.in_features)
        bound = 1 / math.sqrt(self.in_features if config.init == "lora" else config.r)
        b = empty_like_weight(base.weight, config.r, sum(self.widths))
        masks_a, masks_b = self._masks(config)
        uniform = partial(nn.init.uniform_, a=-bound, b=bound)
        self.lora_A = TiedWeight(config, masks_a, uniform(a), uniform)
        self.lora_B = TiedWeight(config, masks_b, nn.init.zeros_(b))
        self.register_buffer("merged_weight", None, persistent=False)
        self.stays_merged, self.merging = False, 0
        self.register_load_state_dict_post_hook(_merge_anew)
        self.train(base.training)

    def _masks(self, config: Scaled) -> tuple[np.ndarray, np.ndarray]:
        """Of A for all slices (slices, r, in), and of B^T for all slices side by side (r, widths)."""
        of_a = [mask_bits(config, self.path, f"A.{i}", (config.r, self.in_features)) for i in range(len(self.slices))]
        of_b = [mask_bits(config, self.path, f"B.{i}", (width, config.r)).T for i, width in enumerate(self.widths)]
        return np.stack(of_a), np.concatenate(of_b, axis=1)

    @property
    def matrix(self) -> Tensor:
        """The frozen weight as (out, in)."""
        return self.weight

    @property
    def merged(self) -> bool:
        return self.merged_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out).

        Raises:
            UserError: In a training step while merged, which would leave the increments without gradients.
        """
        if self.disabled:
            return F.linear(x, self.matrix, self.bias)
        merged_weight = self.merged_weight  # once: another thread may let go of it
        if merged_weight is not None:
            if self.training and torch.is_grad_enabled() and self.lora_A.packed.requires_grad:
                raise UserError(f"{self.path} is merged and cannot be trained; call unmerge(model), or model.eval()")
            return F.linear(x, merged_weight, self.bias)
        dropped = self.dropout(x) if self.drops and self.training else None
        factors = self.factors(dtype=precision(x))
        return incremented_linear(x, self.matrix, self.bias, self.slices, *factors, self.scaling, dropped)

    def factors(self, training: bool | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Concatenated over slices and copies: A (slices*d*r, in) and B^T (d*r, widths); see `TiedWeight.copies`."""
        a, b = self.lora_A.copies(training, dtype), self.lora_B.copies(training, dtype)
        return a.flatten(0, 2), b.flatten(0, 1)

    def factors_by_slice(self) -> list[tuple[Tensor, Tensor]]:
        """A (d*r, in) and alpha/r * B (width, d*r) of each slice, as evaluation sees them."""
        a, b = self.factors(training=False)
        return list(zip(a.chunk(len(self.slices)), (self.scaling * b.T).split(self.widths), strict=True))

    @torch.no_grad()
    def increments(self) -> list[Tensor]:
        """The (out, in) increment of each slice in single precision or better, as evaluation sees it."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return [b @ a for a, b in self.factors_by_slice()]

    def merge(self) -> None:
        """Compute with the sum of weight and increments, stored separately from the weight, until `unmerge`."""
        self._settle(True, self.merging)

    def unmerge(self) -> None:
        """Release the sum; within `merged` contexts, at the end of the last."""
        self._settle(False, self.merging)

    def count_merging(self, change: int) -> None:
        """Count a context that needs the layer merged: 1 on entry, -1 on exit."""
        self._settle(self.stays_merged, self.merging + change)

    def _settle(self, stays_merged: bool, merging: int) -> None:
        if not (stays_merged or merging):
            self.merged_weight = None
        elif not self.merged:
            self.merged_weight = self.sum_of_weights()
        self.stays_merged, self.merging = stays_merged, merging

    @torch.inference_mode(False)  # a tensor made there could not take part in a gradient later
    @torch.no_grad()
    def sum_of_weights(self) -> Tensor:
        """The weight with its increments, (out, in), in the weight's precision."""
        total = self.matrix.detach().clone()
        for (start, stop), increment in zip(self.slices, self.increments(), strict=True):
            rows = total[start:stop]
            rows.copy_(rows.to(increment.dtype) + increment)
        return total

    def plain_merged(self) -> nn.Module:
        """A plain layer that holds the sum."""
        layer = self.plain()
        matrix = self.sum_of_weights() if self.merged_weight is None else self.merged_weight
        weight = matrix.T.contiguous() if self.fan_in_fan_out else matrix
        layer.weight = nn.Parameter(weight, self.weight.requires_grad)
        return layer

    def __getstate__(self) -> dict[str, Any]:
        """A copy made within a context keeps the layer's state there: nothing else would end its merging."""
        return vars(self) | {"stays_merged": self.merged, "merging": 0}


class CapaLinear(Incremented, nn.Linear):
    """`nn.Linear` with increments."""


def _merge_anew(layer: Incremented, _: Any) -> None:
    """Merge again after a state dict was loaded: the old sum is out of date."""
    if layer.merged:
        layer.merged_weight = layer.sum_of_weights()
