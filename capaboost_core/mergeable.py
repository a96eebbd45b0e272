"""Layers whose additions their own weight and bias can hold."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from capaboost_core.adapted import Adapted, compute_weights, settle_weights
from capaboost_core.errors import UserError


class Sums(nn.Module):
    """A weight, and a bias where that differs too, with the addition in them; they move as a layer does, unsaved."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)


class Mergeable(Adapted):
    """An adapted layer that computes with its sums while it is merged.

    They are made once and kept beside the frozen parameters, which never change: the state dict is the same, merged
    or not. A subclass calls `allow_merging` at the end of its constructor, makes the sums in `summed`, and computes
    with what `current_sums` gives, if that is not None.
    """

    mergeable: ClassVar[bool] = True

    def allow_merging(self) -> None:
        self.register_module("sums", None)
        self.stays_merged, self.merging = False, 0
        self.register_load_state_dict_post_hook(_merge_anew)

    def summed(self) -> tuple[Tensor, Tensor | None]:
        """The weight with the addition in its precision, and the bias; None leaves the bias as it is."""
        raise NotImplementedError

    @property
    def merged(self) -> bool:
        return self.sums is not None

    def current_sums(self) -> Sums | None:
        """The sums while merged, read once: another thread may let go of them.

        Raises:
            UserError: In a training step while merged, which would leave the addition without gradients.
        """
        sums = self.sums
        in_training = sums is not None and self.training and torch.is_grad_enabled()
        if in_training and any(parameter.requires_grad for parameter in self.own_parameters().values()):
            raise UserError(f"{self.path} is merged and cannot be trained; call unmerge(model), or model.eval()")
        return sums

    def merge(self) -> None:
        """Compute with the sums until `unmerge`."""
        self._settle(True, self.merging)

    def unmerge(self) -> None:
        """Release the sums; within `merged` contexts, at the end of the last."""
        self._settle(False, self.merging)

    def count_merging(self, change: int) -> None:
        """Count a context that needs the layer merged: 1 on entry, -1 on exit."""
        self._settle(self.stays_merged, self.merging + change)

    def _settle(self, stays_merged: bool, merging: int) -> None:
        if not (stays_merged or merging):
            self.sums = None
        elif not self.merged:
            self.sums = self._make_sums()
        self.stays_merged, self.merging = stays_merged, merging

    @torch.inference_mode(False)  # a tensor made there could not take part in a gradient later
    @torch.no_grad()
    def _make_sums(self) -> Sums:
        compute_weights(self)
        with torch.autocast(self.weight.device.type, enabled=False):
            return Sums(*self.summed())

    def plain_merged(self) -> nn.Module:
        """A plain layer that holds the sums."""
        layer, sums = self.plain(), self.sums or self._make_sums()
        settle_weights(layer)
        layer.weight = nn.Parameter(self.as_stored(sums.weight), self.weight.requires_grad)
        if sums.bias is not None:
            layer.bias = nn.Parameter(sums.bias, self.bias.requires_grad)
        return layer

    def as_stored(self, weight: Tensor) -> Tensor:
        """A weight as the frozen layer holds it."""
        return weight

    def __getstate__(self) -> dict[str, Any]:
        """A copy made within a context keeps the layer's state there: nothing else would end its merging."""
        return vars(self) | {"stays_merged": self.merged, "merging": 0}


def _merge_anew(layer: Mergeable, _: Any) -> None:
    """Merge again after a state dict was loaded: the old sums are out of date."""
    if layer.merged:
        layer.sums = layer._make_sums()


_merge_anew.of_adapted = True
