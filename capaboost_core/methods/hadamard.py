"""The Hadamard adapter (Chen et al., 2023): a weight and a bias for each entry of the attention's output."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from capaboost_core.methods.registry import register_method
from capaboost_core.methods.scale_shift import ScaleShiftMethod
from capaboost_core.plan import Plan
from capaboost_core.roles import Roles


@register_method("hadamard")
class HadamardAdapter(ScaleShiftMethod):
    """w * A + b on the output A of each attention, before the residual sum; w starts at 1 and b at 0.

    The paper (arXiv 2407.11033) trains the norm that follows as well, 0.033 % of BERT-base together. Here a weight
    and a bias go over the frozen norm's, which gives the same functions and can be taken away again. Its first stage,
    which trains the classifier alone, is not there: the head trains along.
    """

    norms: bool = Field(True, description="Train the norm between attention and feed-forward part too.")

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        targets = roles.targets(("o", "attention_norm") if self.norms else ("o",))
        return Plan(targets, roles.head, roles.switches)
