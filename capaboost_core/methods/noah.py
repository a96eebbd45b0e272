"""NOAH (Zhang et al., 2022, arXiv 2206.04673): LoRA, adapter and prompts in each block, of widths that a search finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError
from capaboost_core.methods.base import Method
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.padapter import PAdapter
from capaboost_core.methods.registry import register_method
from capaboost_core.methods.sliced import SlicedBottleneck, SlicedLinear, SlicedPrompts, cut, parts_of, pass_on
from capaboost_core.methods.subnets import Space, Subnet
from capaboost_core.methods.vpt import VPT, VPTDeep, embedding_fan_in
from capaboost_core.plan import Plan, Target
from capaboost_core.roles import Roles
from capaboost_core.settings.base import refuse
from capaboost_core.sharing.settings import PLAIN, TIED, Tying
from capaboost_core.wrappers import unwrap

LARGEST = 65536
Numbers = Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(lambda v: tuple(v) if type(v) is list else v)]
DIMS = ("lora_dim", "adapter_dim", "prompt_dim")


class SlicedLoRA(LoRA):
    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: SlicedLinear}


class SlicedAdapter(PAdapter):
    def make_adapter(self, path: str, width: int, weight: Tensor) -> SlicedBottleneck:
        return SlicedBottleneck(self, path, width, weight)


class Composed(Tying, Method):
    """LoRA on the layer of q, k and v, a bottleneck after the feed-forward part, and prompts, each of its own width."""

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


@register_method("noah", capaboost_noah=TIED, noah=PLAIN)
class NOAH(Composed):
    """One subnet as a method: its widths are settings, and it trains from scratch.

    A block with widths l, a and p has 4 w l entries for LoRA, 2 w a + a + w for the adapter, and w p for prompts.
    Prompts stay among the tokens up to the next block that has its own, or the last, as in the authors' code
    (ZhangYuanhan-AI/NOAH model/supernet_vision_transformer_timm.py:357-369 at e9c55f3), from which LoRA's form, the
    adapter's place and dropout are as well.
    """

    budget: ClassVar[str | None] = "r"

    r: int = Field(5, ge=1, le=LARGEST, description="Rank, width and number of prompts where they are not given.")
    lora_dim: int | Numbers | None = Field(
        None, json_schema_extra={"null": "r"}, description="LoRA's rank, of all blocks or block by block; 0: none."
    )
    adapter_dim: int | Numbers | None = Field(
        None, json_schema_extra={"null": "r"}, description="The bottleneck's width, likewise."
    )
    prompt_dim: int | Numbers | None = Field(
        None, json_schema_extra={"null": "r"}, description="Number of prompts, likewise."
    )

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """Without r, where all widths are given."""
        return super().used(values) - ({"r"} if all(values.get(name) is not None for name in DIMS) else set())

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        given = [self._dims(name) for name in DIMS]
        for name, dims in zip(DIMS, given, strict=True):
            if not all(0 <= width <= LARGEST for width in dims):
                refuse(name, getattr(self, name), f"type whole numbers from 0 to {LARGEST}")
        if not any(map(any, given)):
            refuse(DIMS[0], self.lora_dim, "all widths are 0; type one above 0, or choose method linear")
        if "r" in self.model_fields_set and "r" not in self.used(self.__dict__):
            refuse("r", self.r, f"it means nothing where {', '.join(DIMS)} are given; drop it")
        return self

    @property
    def least_entries(self) -> float:
        """A share of the entries of the widest part, for layers of width 1."""
        return max(max(self._dims(name)) for name in DIMS) * self.density

    def subnet(self, blocks: int) -> Subnet:
        return Subnet(*(self._widths(name, blocks) for name in DIMS))

    def _dims(self, name: str) -> tuple[int, ...]:
        value = getattr(self, name)
        value = self.r if value is None else value
        return value if isinstance(value, tuple) else (value,)

    def _widths(self, name: str, blocks: int) -> tuple[int, ...]:
        dims = self._dims(name)
        if not isinstance(getattr(self, name), tuple):
            return dims * blocks
        if len(dims) != blocks:
            raise UserError(f"{name} has {len(dims)} numbers, but the model has {blocks} blocks; type one for each")
        return dims


@register_method("noah-supernet", capaboost_noah_supernet=TIED, noah_supernet=PLAIN)
class NOAHSupernet(Composed):
    """All subnets of a space in one: each step draws one of them, which trains the first of the largest widths.

    Evaluation has the whole. `capaboost noah` trains it, searches in it and trains what it finds. Dims, depths and the
    draw are the authors' (experiments/NOAH/supernet/supernet-B_prompt.yaml, supernet_engine_prompt.py:18-26 at
    e9c55f3). Each process, and each slice of an accumulated batch, draws for itself.
    """

    dims: Numbers = Field((5, 10, 50, 100), description="Widths that a part of a block may have.")
    depths: Numbers | None = Field(
        None,
        json_schema_extra={"null": "quarters of the blocks"},
        description="Numbers of blocks, from the first on, that may have a part.",
    )

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        for name, least in (("dims", 0), ("depths", 0)):
            numbers = getattr(self, name) or (1,)
            if not (all(least <= number <= LARGEST for number in numbers) and any(numbers)):
                refuse(name, numbers, f"type whole numbers from 0 to {LARGEST}, one of them above 0")
        return self

    @property
    def least_entries(self) -> float:
        """A share of the entries of a part, for layers of width 1."""
        return max(self.dims) * self.density

    def space(self, blocks: int) -> Space:
        """The subnets of a model of so many blocks.

        Raises:
            UserError: If a depth is above that.
        """
        depths = self.depths or tuple(dict.fromkeys(max(1, round(blocks * quarter / 4)) for quarter in (1, 2, 3, 4)))
        if max(depths) > blocks:
            raise UserError(f"depths has {max(depths)}, but the model has {blocks} blocks; type {blocks} or less")
        return Space(self.dims, depths, blocks)

    def subnet(self, blocks: int) -> Subnet:
        """The whole."""
        self.space(blocks)
        return Subnet(*((max(self.dims),) * blocks,) * len(DIMS))

    def fixed(self, subnet: Subnet) -> NOAH:
        """A subnet as the method that trains it from scratch."""
        return NOAH(**self.shared(), **dict(zip(DIMS, subnet, strict=True)))

    def objective(self, loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
        """The loss of a random subnet; the run's stream on the host draws it, so that nothing waits for a device."""
        bare, seed = unwrap(model), int(torch.randint(2**63 - 1, (), device="cpu"))
        cut(bare, self.space(_blocks(bare)).random(Random(seed)))
        return loss_of(model, batch)

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Whole again, for evaluation: only now, as a backward pass may compute layers once more."""
        cut(model, self.subnet(_blocks(model)))


def _blocks(model: nn.Module) -> int:
    return len(parts_of(model)[0])
