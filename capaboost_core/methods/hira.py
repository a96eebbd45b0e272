"""HiRA: the frozen weight times a low-rank matrix, entry by entry, plain or with tied factors."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capaboost_core.layers import Adapted, MacCount
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.lora_layer import LoRALinear, precision
from capaboost_core.methods.method import register_method
from capaboost_core.sharing.masks import PLAIN, TIED


class HiRALinear(LoRALinear):
    """x (W + W * D)^T + b with D = s * sum_i (B * mb_i)(A * ma_i), on the output or slices of it.

    W * D is a product of entries: its rank is at most that of W times d r, so it may be full at any r. It is made at
    each call, (out, in) for each slice, and multiplied with the input, as a second frozen layer would be. A, B and
    their masks are LoRA's, and the output starts as the base's.

    Raises:
        UserError: In a training step while merged, which would leave the factors without gradients.
    """

    low_rank: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        if self.disabled:
            return F.linear(x, self.matrix, self.bias)
        merged = self.current_merged()
        if merged is not None:
            return F.linear(x, merged.weight, self.bias)
        out, seen, end, parts = F.linear(x, self.matrix, self.bias), self.dropout(x), 0, []
        a, b = self.factors(dtype=precision(x))
        for (start, stop), delta in sorted(
            zip(self.slices, self._deltas(a, b), strict=True), key=lambda pair: pair[0]
        ):
            parts += [out[..., end:start], out[..., start:stop] + F.linear(seen, delta.to(seen.dtype))]
            end = stop
        return torch.cat([*parts, out[..., end:]], -1)

    def _deltas(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """W * D of each slice, (width, in)."""
        factors = zip(self.slices, a.chunk(len(self.slices)), b.T.split(self.widths), strict=True)
        return [self.matrix[start:stop] * (self.scaling * up @ down) for (start, stop), down, up in factors]

    @torch.no_grad()
    def delta_weights(self) -> list[Tensor]:
        """The (out, in) delta weight of each slice in single precision or better, as evaluation sees it."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self._deltas(*self.factors(training=False))

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """W * D with the input for each row, and B A once a call, of which density^2 meets kept entries."""
        rows = sum(self.widths) * self.in_features
        made = rows * self.lora_A.num_tied * self.lora_A.bits.shape[-2]
        share = self.lora_A.kept * self.lora_B.kept / (self.lora_A.executed * self.lora_B.executed)
        trains = self.lora_A.trains or self.lora_B.trains
        return [
            MacCount(rows, rows, trains, needs_gradient),
            MacCount(made, round(made * share), self.lora_A.trains, self.lora_B.trains, per_call=True),
        ]


@register_method("hira", capaboost_hira=TIED, hira=PLAIN)
class HiRA(LoRA):
    """W * (1 + s * sum_i (B * mb_i)(A * ma_i)) on frozen linear layers: high rank for as many entries as LoRA.

    Huang et al. (ICLR 2025, openreview.net/forum?id=TwJrTz9cRS) have d = 1, no masks and s = 1.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: HiRALinear}
