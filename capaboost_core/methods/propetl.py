"""ProPETL (Zeng et al., 2023, arXiv 2305.17682): one module for all layers, which each sees through a learned mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from capaboost_core.layers import Adapted
from capaboost_core.methods.bottleneck import PAdapter
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.lora_layer import Scaling
from capaboost_core.methods.method import Method, register_method
from capaboost_core.methods.prefix import PrefixTuning
from capaboost_core.plan import Plan
from capaboost_core.sharing.learned import LearnedMaskWeight
from capaboost_core.sharing.tied import SharedParameters, TyingSettings


class ProPETL(TyingSettings, Method):
    """Learned masks in place of drawn ones, and prototypes that the layers of a role share; list it before a method.

    Trained are the prototype, once, and a score for each entry of it in each layer. Learning rates, densities and the
    presets' r are the authors' for RoBERTa-base, with a learning rate of 1e-4 (ChaosCodes/ProPETL
    propetl-roberta/scripts/ run_adapter.sh, run_lora.sh, run_prefix.sh,
    src/transformers/adapters/modeling.py:837-902@1c08f19). They keep the masks as bits; files hold the scores here. Of
    several modules (num_tied) each has a mask of its own.
    """

    num_tied: int = Field(
        default=1, ge=1, le=8, description="d, the number of masks that a layer learns for each weight."
    )
    density: float = Field(
        default=0.5, gt=0, le=1, examples=["0.5"], description="Share of entries that each mask keeps."
    )
    mask_lr_factor: float = Field(
        default=30.0, gt=0, description="Learning rate of the mask's scores, as a multiple of the run's."
    )

    @property
    def is_plain(self) -> bool:
        return self.num_tied == 1

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """The settings of random masks mean nothing where masks are learned."""
        return super().used(values) - {"mask", "n", "m", "seed"}

    def make_weight(
        self,
        name: str,
        masks: Callable[[], Any],
        initial: Tensor,
        initialise: Callable[[Tensor], Any],
        parts: Sequence[int] = (),
    ) -> nn.Module:
        """A prototype, with scores from the range of the authors' code, Kaiming's over the layout that they have."""
        r, width = initial.shape[-2:]
        fan_in = {"A": width, "B": r, "down": r, "up": width}.get(name, 2 * r * width)
        return LearnedMaskWeight(initial, initialise, self.density, self.num_tied, fan_in**-0.5, parts)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """Layers whose paths differ by numbers alone borrow all but the scores from the first."""
        layers = super().make_layers(modules, plan)
        owners: dict[tuple[Any, ...], SharedParameters] = {}
        for path, layer in layers.items():
            role = [part for part in path.split(".") if not part.isdigit()]
            for name, module in layer.named_modules():
                if isinstance(module, SharedParameters):
                    own = {n: p.shape for n, p in module.named_parameters(recurse=False) if n != "scores"}
                    module.attach_shared(owners.setdefault((*role, name, *own.items()), module), *own)
        return layers

    def lr_factor(self, name: str) -> float:
        return self.mask_lr_factor if name.endswith(".scores") else 1.0


@register_method("propetl-lora", propetl_lora={"r": 32, "alpha": 48.0})
class ProPETLLoRA(ProPETL, LoRA):
    """LoRA whose increments of q share one prototype, and those of v another."""

    density: float = Field(
        default=0.1, gt=0, le=1, examples=["0.1"], description="Share of entries that each mask keeps."
    )
    mask_lr_factor: float = Field(
        default=300.0, gt=0, description="Learning rate of the mask's scores, as a multiple of the run's."
    )
    scaling: Scaling = Field(default="alpha-r", description="As the authors have it; see docs/scale.md.")


@register_method("propetl-padapter", propetl_padapter={"r": 64})
class ProPETLPAdapter(ProPETL, PAdapter):
    """PAdapter whose layers share one prototype, biases included."""

    starts_as_base: ClassVar[bool] = False

    init: Literal["lora", "official"] = Field(
        default="official", description="lora: up = 0; official: N(0, 0.02) everywhere."
    )
    scaling: Scaling = Field(default="alpha-r", description="As the authors have it; see docs/scale.md.")


@register_method("propetl-prefix", propetl_prefix={"r": 64})
class ProPETLPrefix(ProPETL, PrefixTuning):
    """Prefix tuning whose layers share one prototype, which the authors make by an MLP."""

    density: float = Field(
        default=0.1, gt=0, le=1, examples=["0.1"], description="Share of entries that each mask keeps."
    )
    mask_lr_factor: float = Field(
        default=1.0, gt=0, description="Learning rate of the mask's scores, as a multiple of the run's."
    )
