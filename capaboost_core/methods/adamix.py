"""AdaMix (Wang et al., 2022, arXiv 2205.12410): mixtures of adapters, and of LoRA's factors."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.methods.adapter_settings import AfterFeedForward
from capaboost_core.methods.bottleneck import Filler
from capaboost_core.methods.capa_linear import CapaLinear
from capaboost_core.methods.experts import ExpertBottleneck, ExpertWeight, Mixture, routed
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.registry import register_method
from capaboost_core.sharing.settings import PLAIN, TIED


@register_method("adamix", capaboost_adamix=TIED, adamix=PLAIN)
class AdaMix(Mixture, AfterFeedForward):
    """Bottlenecks after the feed-forward parts, with experts for their projections; each step draws one a projection.

    A layer has (num_experts + 1) * r * width entries of matrices and num_experts * r + width of biases. Evaluation
    computes with one bottleneck of mean weights, inference level 3 of the authors' code (microsoft/AdaMix
    src/transformers/models/expert_soup.py@d361e9d); a file keeps all experts. BERT-base had r = 48, 4 experts and a
    learning rate of 4e-4, RoBERTa-large r = 16 and 3e-4.
    """

    share_up: bool = Field(True, description="One up projection for all experts, as the authors run it.")

    @property
    def mixed(self) -> tuple[str, ...]:
        return ("down",) if self.share_up else ("down", "up")

    def make_adapter(self, path: str, width: int, weight: Tensor) -> nn.Module:
        return ExpertBottleneck(self, path, width, weight)


class ExpertLinear(CapaLinear):
    """`nn.Linear` with increments whose A each expert has of its own; merged, it holds the means'."""

    def make_factor(self, config: AdaMixLoRA, name: str, empty: Tensor, fill: Filler) -> nn.Module:
        if name not in config.mixed:
            return super().make_factor(config, name, empty, fill)
        experts = range(config.num_experts)
        masks = np.stack([self.masks(config, f"{name}.{expert}") for expert in experts])
        return ExpertWeight(config, masks, fill(empty.new_empty(len(experts), *empty.shape)), fill)

    def factor(self, name: str, training: bool, dtype: torch.dtype | None) -> Tensor:
        if not isinstance(getattr(self, f"lora_{name}"), ExpertWeight):
            return super().factor(name, training, dtype)
        return routed(training, super().factor(name, training, None))[0]  # the mean is taken before it is lowered


@register_method("adamix-lora", capaboost_adamix_lora=TIED, adamix_lora=PLAIN)
class AdaMixLoRA(Mixture, LoRA):
    """LoRA whose A each expert has of its own, with one B.

    (num_experts * in + out) * r entries for each increment. The authors' GPT-2 has r = 4, alpha = 32, 8 experts and a
    learning rate of 2e-4 (NLG/run_train_e2e.sh, NLG/loralib/layers.py:263-376@d361e9d).
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: ExpertLinear}
    mixed: ClassVar[tuple[str, ...]] = ("A",)
