"""AdaMix (Wang et al., 2022, arXiv 2205.12410): mixtures of adapters, and of LoRA's factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.layers import Adapted, Filler
from capaboost_core.methods.bottleneck import AfterFeedForward, Bottleneck
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.lora_layer import LoRALinear
from capaboost_core.methods.method import register_method
from capaboost_core.settings import Settings
from capaboost_core.sharing.masks import PLAIN, TIED, mask_bits
from capaboost_core.sharing.tied import TiedWeight


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[list[Any]]:
    """Within the context a list fills with what the model returns."""
    outputs: list[Any] = []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def disagreement(first: Any, second: Any) -> Tensor:
    """The symmetric KL divergence (KL(p || q) + KL(q || p)) / 2 of two outputs, a mean over rows.

    Each side learns from the other's values as they are (microsoft/AdaMix src/transformers/models/roberta/
    modeling_roberta.py:1179-1188@d361e9d). Outputs are logits (..., classes), or hold fields with names in `logits`,
    whose divergences are summed. A regression has one class, and no divergence.
    """
    pairs = zip(_logits(first), _logits(second), strict=True)
    divergences = (_towards(p, q.detach()) + _towards(q, p.detach()) for p, q in pairs)
    return cast(Tensor, sum(divergences)) / 2


def _towards(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || logits)."""
    logits, target = (values.flatten(0, -2).log_softmax(-1) for values in (logits, target))
    return F.kl_div(logits, target, reduction="batchmean", log_target=True)


def _logits(output: Any) -> list[Tensor]:
    found = [output] if isinstance(output, Tensor) else [v for name, v in output.items() if name.endswith("logits")]
    return [logits.float() for logits in found]


# Mixtures of experts: random routing in training, one mean expert after it.


def routed(training: bool, *stacks: Tensor) -> list[Tensor]:
    """One random expert's part of stacks (experts, ...) that belong together in training, else their means.

    The random number is the device's: the host does not wait for it, checkpointed gradients repeat it, and a resumed
    run continues its stream.
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
    """Settings of a mixture, and its loss; list it before `Method` among the bases."""

    num_experts: int = Field(
        default=4, ge=1, le=256, description="Experts, of which each training step draws one a layer."
    )
    consistency: float = Field(
        default=1.0,
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


@register_method("adamix", capaboost_adamix=TIED, adamix=PLAIN)
class AdaMix(Mixture, AfterFeedForward):
    """Bottlenecks after the feed-forward parts, with experts for their projections; each step draws one a projection.

    A layer has (num_experts + 1) * r * width entries of matrices and num_experts * r + width of biases. Evaluation
    computes with one bottleneck of mean weights, inference level 3 of the authors' code (microsoft/AdaMix
    src/transformers/models/expert_soup.py@d361e9d); a file keeps all experts. BERT-base had r = 48, 4 experts and a
    learning rate of 4e-4, RoBERTa-large r = 16 and 3e-4.
    """

    share_up: bool = Field(default=True, description="One up projection for all experts, as the authors run it.")

    @property
    def mixed(self) -> tuple[str, ...]:
        return ("down",) if self.share_up else ("down", "up")

    def make_adapter(self, path: str, width: int, weight: Tensor) -> Bottleneck:
        return ExpertBottleneck(self, path, width, weight)


class ExpertLinear(LoRALinear):
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
