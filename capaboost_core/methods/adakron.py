"""AdaKron and its mixtures of experts, MAdaKron (Braga et al., 2024): the hidden vector is a Kronecker product."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from capaboost_core.methods.adamix import ExpertBottleneck, Mixture
from capaboost_core.methods.bottleneck import AfterFeedForward, Bottleneck
from capaboost_core.methods.lora_layer import Scaling
from capaboost_core.methods.method import register_method
from capaboost_core.settings import refuse
from capaboost_core.sharing.masks import PLAIN, TIED


class KroneckerBottleneck(Bottleneck):
    """sum_i f((h (A2 * m2_i)^T + c2) kron (h (A1 * m1_i)^T + c1)) (U * mu_i)^T + e.

    A2 has `left` outputs and A1 r / left, so that their Kronecker product has r entries: entry j of it is
    A2's j // (r / left) times A1's j % (r / left). (DetectiveMB/AdaKron src/transformers/models/expert_soup.py:108-149
    @a5187e1.)
    """

    def hidden_sizes(self, config: AdaKron) -> dict[str, int]:
        return {"left": config.left, "right": config.r // config.left}

    def combine(self, projections: list[Tensor]) -> Tensor:
        left, right = (projection.unflatten(-1, (self.num_tied, -1)) for projection in projections)
        return (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-3)


@register_method("adakron", capaboost_adakron=TIED, adakron=PLAIN)
class AdaKron(AfterFeedForward):
    """A bottleneck after each feed-forward part, whose hidden vector is the Kronecker product of two small ones.

    A layer has width * (left + r / left + r) entries of matrices, two thirds of a bottleneck's at the authors' r = 48
    for BERT-base, and left + r / left + width of biases. Their RoBERTa-large has r = 16 and a learning rate of 3e-4
    (DetectiveMB/AdaKron Run_RoBERTa/MNLI_16.sh@a5187e1).
    """

    left: int = Field(
        default=4, ge=1, le=65536, description="Entries of the left vector of the Kronecker product; divides r."
    )
    scaling: Scaling = Field(default="alpha-r", description="stable does not count a hidden value as a product.")

    @property
    def budget_step(self) -> int:
        return self.left

    @model_validator(mode="after")
    def _check_left(self) -> Self:
        if self.r % self.left:
            refuse("r", self.r, f"it is the product of left, {self.left}, and the other size; try {self.left * 4}")
        return self

    def make_adapter(self, path: str, width: int, weight: Tensor) -> Bottleneck:
        return KroneckerBottleneck(self, path, width, weight)


class MixedKroneckerBottleneck(ExpertBottleneck, KroneckerBottleneck):
    """AdaKron's bottleneck with experts."""


@register_method("madakron", capaboost_madakron=TIED, madakron=PLAIN)
class MAdaKron(Mixture, AdaKron):
    """AdaKron with experts for both small projections: full MAdaKron.

    A layer has width * (num_experts * (left + r / left) + r) entries of matrices. The authors' command has 2 experts
    and no consistency loss (README.md@a5187e1).
    """

    num_experts: int = Field(
        default=2, ge=1, le=256, description="Experts, of which each training step draws one a layer."
    )
    consistency: float = Field(
        default=0.0, ge=0, examples=["1.0"], description="Weight of the loss between two passes."
    )

    @property
    def mixed(self) -> tuple[str, ...]:
        return ("left", "right")

    def make_adapter(self, path: str, width: int, weight: Tensor) -> Bottleneck:
        return MixedKroneckerBottleneck(self, path, width, weight)


@register_method("madakron-partial", capaboost_madakron_partial=TIED, madakron_partial=PLAIN)
class PartialMAdaKron(MAdaKron):
    """AdaKron with experts for the left projection alone (NLG/src/expert_soup.py:93-129@a5187e1)."""

    @property
    def mixed(self) -> tuple[str, ...]:
        return ("left",)
