"""Mixtures of experts as AdaMix has them (Wang et al., 2022): random routing in training, one mean expert after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.methods.bottleneck import Bottleneck, Filler
from capaboost_core.methods.consistency import disagreement, outputs_of
from capaboost_core.settings.base import Settings
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight


def routed(training: bool, *stacks: Tensor) -> list[Tensor]:
    """Of stacks (experts, ...) that belong together, those of one expert in training, which is drawn, else the means.

    The draw is the device's own: the host does not wait for it, checkpointed gradients repeat it, and a resumed run
    goes on with it.
    """
    if not training:
        return [stack.mean(0) for stack in stacks]
    expert = torch.randint(len(stacks[0]), (1,), device=stacks[0].device)
    return [stack.index_select(0, expert).squeeze(0) for stack in stacks]


class ExpertWeight(TiedWeight):
    """A tied weight (experts, ..., r, width): a training step computes with one expert's, evaluation with the mean.

    Experts have masks of their own, so the mean is denser than each: of density 1 - (1 - p)^experts where each has p.
    """

    def __init__(self, config: Any, masks: np.ndarray, initial: Tensor, initialise: Filler):
        super().__init__(config, masks, initial, initialise)
        self.ones_of_mean = int(np.unpackbits(np.bitwise_or.reduce(masks)).sum())

    @property
    def executed(self) -> int:
        return super().executed // len(self.bits)

    @property
    def kept(self) -> int:
        """In training the ones of an expert's masks, their mean over the experts; in evaluation those of the mean."""
        return super().kept // len(self.bits) if self.training else self.ones_of_mean


class Mixture(Settings):
    """Settings of a mixture, and its loss; it stands before `Method` among a method's bases."""

    num_experts: int = Field(4, ge=1, le=256, description="Experts, of which each training step draws one a layer.")
    consistency: float = Field(
        1.0,
        ge=0,
        examples=["1.0"],
        description="Weight of the symmetric KL divergence between two passes with other draws; 0 has but one pass.",
    )

    @property
    def mixed(self) -> tuple[str, ...]:
        """Names of the weights that each expert has of its own."""
        raise NotImplementedError

    def objective(self, loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
        """The loss of one pass, and how much the outputs of a second one differ."""
        if not self.consistency:
            return loss_of(model, batch)
        with outputs_of(model) as outputs:
            loss = loss_of(model, batch)
            loss_of(model, batch)
        return loss + self.consistency * disagreement(*outputs)


class ExpertBottleneck(Bottleneck):
    """A bottleneck with experts for the projections that its settings name.

    Weight and bias of a projection are drawn together, and each projection for itself.
    """

    def make_projection(self, config: Any, path: str, name: str, empty: Tensor, fill: Filler) -> None:
        if name not in config.mixed:
            return super().make_projection(config, path, name, empty, fill)
        experts = range(config.num_experts)
        masks = np.stack([mask_bits(config, path, f"{name}.{expert}", empty.shape) for expert in experts])
        initial = fill(empty.new_empty(len(experts), *empty.shape))
        if name == "up":
            masks, initial = masks.swapaxes(1, 2), initial.mT
        setattr(self, name, ExpertWeight(config, masks, initial, fill))
        # One vector, so that optimizers which spare biases from weight decay spare it.
        setattr(self, f"{name}_bias", nn.Parameter(empty.new_empty(len(experts) * len(empty))))

    def projection(self, name: str) -> tuple[Tensor, Tensor]:
        copies, bias = super().projection(name)
        if copies.ndim == 3:
            return copies, bias
        copies, bias = routed(self.training, copies, bias.view(len(copies), -1))
        return copies, bias
