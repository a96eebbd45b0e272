"""Merging: a layer computes with the sum of its frozen weight and its addition, which is stored beside the weight."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError


class Mergeable(Adapted):
    """A linear layer whose addition changes its weight, and perhaps its bias, in a way that does not depend on x.

    Merged, it computes with sums made once and stored separately: the weight itself never changes, and the state dict
    is the same, merged or not.
    """

    mergeable: ClassVar[bool] = True
    fan_in_fan_out: ClassVar[bool] = False  # peft's word: whether the weight is held as (in, out)

    def allow_merging(self) -> None:
        """To be called in the constructor, after `adopt`."""
        self.register_buffer("merged_weight", None, persistent=False)
        self.register_buffer("merged_bias", None, persistent=False)
        self.stays_merged, self.merging = False, 0
        self.register_load_state_dict_post_hook(_merge_anew)

    @property
    def matrix(self) -> Tensor:
        """The frozen weight as (out, in)."""
        return self.weight.T if self.fan_in_fan_out else self.weight

    @property
    def merged(self) -> bool:
        return self.merged_weight is not None

    def sums(self) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) and the bias with the addition, as evaluation sees them, in the weight's precision."""
        raise NotImplementedError

    def check_not_trained(self) -> None:
        """Refuse a training step while merged, which would leave the addition without gradients.

        Raises:
            UserError: If it is one.
        """
        if self.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.own_parameters().values()):
            raise UserError(f"{self.path} is merged and cannot be trained; call unmerge(model), or model.eval()")

    def merge(self) -> None:
        """Compute with the sums, stored separately from the weight, until `unmerge`."""
        self._settle(True, self.merging)

    def unmerge(self) -> None:
        """Release the sums; within `merged` contexts, at the end of the last."""
        self._settle(False, self.merging)

    def count_merging(self, change: int) -> None:
        """Count a context that needs the layer merged: 1 on entry, -1 on exit."""
        self._settle(self.stays_merged, self.merging + change)

    def _settle(self, stays_merged: bool, merging: int) -> None:
        if not (stays_merged or merging):
            self.merged_weight = None
        elif not self.merged:
            self.store_sums()
        self.stays_merged, self.merging = stays_merged, merging

    @torch.inference_mode(False)  # a tensor made there could not take part in a gradient later
    @torch.no_grad()
    def store_sums(self) -> None:
        weight, bias = self.sums()
        self.merged_bias = None if bias is None else bias.detach()
        self.merged_weight = weight  # last: another thread takes it for the sign that both are there

    @torch.inference_mode(False)
    @torch.no_grad()
    def plain_merged(self) -> nn.Module:
        """A plain layer that holds the sums."""
        layer = self.plain()
        matrix, bias = (self.merged_weight, self.merged_bias) if self.merged else self.sums()
        weight = matrix.T.contiguous() if self.fan_in_fan_out else matrix
        layer.weight = nn.Parameter(weight, self.weight.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach(), self.bias.requires_grad)
        return layer

    def __getstate__(self) -> dict[str, Any]:
        """A copy made within a context keeps the layer's state there: nothing else would end its merging."""
        return vars(self) | {"stays_merged": self.merged, "merging": 0}


def _merge_anew(layer: Mergeable, _: Any) -> None:
    """Merge again after a state dict was loaded: the old sums are out of date."""
    if layer.merged:
        layer.store_sums()
