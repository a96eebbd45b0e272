"""What NOAH puts into each block: LoRA, an adapter and prompts, each of its own width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.methods.base import Method
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.padapter import PAdapter
from capaboost_core.methods.sliced import SlicedBottleneck, SlicedLinear, SlicedPrompts, pass_on
from capaboost_core.methods.subnets import Subnet
from capaboost_core.methods.vpt import VPT, VPTDeep, embedding_fan_in
from capaboost_core.plan import Plan, Target
from capaboost_core.roles import Roles
from capaboost_core.sharing.settings import Tying


class SlicedLoRA(LoRA):
    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: SlicedLinear}


class SlicedAdapter(PAdapter):
    def make_adapter(self, path: str, width: int, weight: Tensor) -> SlicedBottleneck:
        return SlicedBottleneck(self, path, width, weight)


class Composed(Tying, Method):
    """LoRA on q, k and v, a bottleneck after the feed-forward part, and prompts, in each block of a width of its own.

    Places, LoRA's form and the activation are those of the authors' code (ZhangYuanhan-AI/NOAH
    model/supernet_vision_transformer_timm.py:272-366, model/module/adapter_super.py:8-66 at e9c55f3). LoRA starts with
    B = 0, the adapter from N(0, 0.02), prompts as VPT's; there LoRA's B starts from N(0, 0.02) as well (line 686).

    A block takes part if an integration has put a layer for its class into `layers`.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = VPT.layers
    integrated: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = False

    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        examples=["0.1"],
        description="Probability of dropping, in training, an entry of LoRA's input, of a hidden value or a prompt.",
    )
    targets: Literal["fused-qkv", "attention-qv"] = Field(
        "fused-qkv", description="Of LoRA: one A for q, k and v, or q and v, each with factors of its own."
    )

    def subnet(self, blocks: int) -> Subnet:
        """The widths of a model of so many blocks.

        Raises:
            UserError: If they are those of a model of another depth.
        """
        raise NotImplementedError

    def shared(self) -> dict[str, Any]:
        """The settings that were given and mean the same to all subnets."""
        return {name: getattr(self, name) for name in Composed.model_fields if name in self.model_fields_set}

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """Each block, then the layers of LoRA, then those of adapters, where their widths are not 0."""
        blocks = roles.targets(("block",))
        self.check_kinds(dict(model.named_modules()), blocks)
        subnet = self.subnet(len(blocks))
        places = self._lora(1).plan(model, roles).targets, self._adapter(1).plan(model, roles).targets
        chosen = [
            target
            for targets, widths in zip(places, subnet, strict=False)
            for target, width in zip(targets, widths, strict=True)
            if width
        ]
        return Plan((*blocks, *chosen), roles.head, roles.switches)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """A block comes before the layers within it, which it adopts."""
        known = sum(type(modules.get(target.path)) in self.layers for target in plan.targets)
        blocks, within = plan.targets[: max(1, known)], plan.targets[max(1, known) :]
        subnet = self.subnet(len(blocks))
        layers = self._prompted(modules, blocks, subnet.prompt)
        parts = [self._lora(r) for r in subnet.lora if r] + [self._adapter(r) for r in subnet.adapter if r]
        for part, target in zip(parts, within, strict=False):
            layers |= part.make_layers(modules, Plan((target,)))
        return layers

    def _prompted(
        self, modules: Mapping[str, nn.Module], targets: tuple[Target, ...], widths: tuple[int, ...]
    ) -> dict[str, Adapted]:
        blocks = super().make_layers(modules, Plan(targets))
        for block, width in zip(blocks.values(), widths, strict=True):
            if width:
                config = VPTDeep(r=width, dropout=self.dropout, **self._tying())
                block.prompts = SlicedPrompts(config, block, embedding_fan_in(modules))
        pass_on(list(blocks.values()))
        return blocks

    def _lora(self, r: int) -> LoRA:
        return SlicedLoRA(r=r, dropout=self.dropout, targets=self.targets, **self._tying())

    def _adapter(self, r: int) -> PAdapter:
        return SlicedAdapter(r=r, dropout=self.dropout, init="official", **self._tying())

    def _tying(self) -> dict[str, Any]:
        return {name: value for name, value in self.shared().items() if name in Tying.model_fields}
