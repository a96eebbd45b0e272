"""NOAH (Zhang et al., 2022, arXiv 2206.04673): LoRA, an adapter and prompts in each block, each of its own width.

In the supernet all subnets share the first rows of the largest weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, cast

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted
from capaboost_core.methods.adaptformer import ParallelBottleneck
from capaboost_core.methods.bottleneck import AdapterSettings, PAdapter
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.lora_layer import LoRALinear
from capaboost_core.methods.method import Method, register_method
from capaboost_core.methods.vpt import VPT, PromptedBlock, Prompts, VPTDeep, embedding_fan_in
from capaboost_core.plan import Plan, Roles, Target
from capaboost_core.settings import refuse
from capaboost_core.sharing.masks import PLAIN, TIED
from capaboost_core.sharing.tied import TyingSettings
from capaboost_core.wrappers import unwrap

# Subnets: a width for each part of each block, and the space that they are sampled from.


Widths = tuple[int, ...]


class Subnet(NamedTuple):
    """Widths by block, 0 where a block is without the part.

    Attributes:
        lora: Ranks.
        adapter: Widths of bottlenecks.
        prompt: Numbers of prompts.
    """

    lora: Widths
    adapter: Widths
    prompt: Widths


@dataclass(frozen=True)
class Space:
    """Subnets each of whose parts is in the first blocks, up to one of the depths, with widths of a few choices.

    Attributes:
        dims: The widths.
        depths: Numbers of blocks from the first on.
        blocks: Of the model.
    """

    dims: Widths
    depths: Widths
    blocks: int

    def random(self, random: Random) -> Subnet:
        """A depth for each part, then a width for each of its blocks, all uniform."""
        return Subnet(*(self._grown((), random.choice(self.depths), random) for _ in Subnet._fields))

    def smallest(self) -> Subnet:
        """The subnet of fewest parameters: each part has the smallest width and depth."""
        depth = min(self.depths)
        return Subnet(*((min(self.dims),) * depth + (0,) * (self.blocks - depth) for _ in Subnet._fields))

    def mutated(self, subnet: Subnet, random: Random, rate: float, depth_rate: float) -> Subnet:
        """A part changes with probability `rate`: each of its widths with that probability again, and its depth with
        `depth_rate`.
        """
        return Subnet(*(self._mutated(part, random, rate, depth_rate) if random.random() < rate else part
                        for part in subnet))  # fmt: skip

    def crossed(self, one: Subnet, other: Subnet, random: Random) -> Subnet:
        """A subnet that has each part from one of the two."""
        return Subnet(*(random.choice(pair) for pair in zip(one, other, strict=True)))

    def _mutated(self, part: Widths, random: Random, rate: float, depth_rate: float) -> Widths:
        kept = part[: self._depth(part)]
        kept = tuple(random.choice(self.dims) if random.random() < rate else width for width in kept)
        depth = random.choice(self.depths) if random.random() < depth_rate else len(kept)
        return self._grown(kept[:depth], depth, random)

    def _grown(self, first: Widths, depth: int, random: Random) -> Widths:
        """The first widths, further ones up to the depth, and zeros."""
        more = tuple(random.choice(self.dims) for _ in range(depth - len(first)))
        return first + more + (0,) * (self.blocks - depth)

    def _depth(self, part: Widths) -> int:
        """Blocks up to the last that has the part."""
        return max((index for index, width in enumerate(part, start=1) if width), default=0)


# The parts of a block: LoRA, an adapter and prompts that can run with their first units alone.


class Sliced(nn.Module):
    """A part of a block that computes with its first `width` units, or with all of them if width is None.

    A part of width 0 adds zeros, and its parameters get gradients of zero: several processes need one for each.
    """

    width: int | None = None

    def added(self) -> Iterable[nn.Parameter]:
        """Its own parameters."""
        return self.parameters()


class SlicedLinear(Sliced, LoRALinear):
    """`LoRALinear` with the first rows of A, and columns of B."""

    def factor(self, name: str, training: bool, dtype: torch.dtype | None) -> Tensor:
        return super().factor(name, training, dtype)[..., : self.width, :]

    def added(self) -> Iterable[nn.Parameter]:
        return self.own_parameters().values()


class SlicedBottleneck(Sliced, ParallelBottleneck):
    """U f(D h + c) + e with the first rows of D and c and columns of U, and f(x) = x sigmoid(1.702 x).

    The activation is the authors' (ZhangYuanhan-AI/NOAH model/module/adapter_super.py:8-10 at e9c55f3).
    """

    def __init__(self, config: AdapterSettings, path: str, width: int, weight: Tensor):
        super().__init__(config, path, width, weight)
        self.activation = quick_gelu

    def projection(self, name: str) -> tuple[Tensor, Tensor]:
        copies, bias = super().projection(name)
        bias = bias[: self.width] if name == "down" else bias if self.width != 0 else bias * 0.0
        return copies[..., : self.width, :], bias


class SlicedPrompts(Sliced, Prompts):
    """`Prompts` with the first of each masked view."""

    @property
    def length(self) -> int:
        return super().length if self.width is None else self.num_tied * self.width

    def copies(self) -> Tensor:
        return super().copies()[:, : self.width]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def parts_of(model: nn.Module) -> list[list[Any]]:
    """The parts by block, in the order of `Subnet`."""
    kinds = (SlicedLinear, SlicedBottleneck, SlicedPrompts)
    return [[module for module in model.modules() if isinstance(module, kind)] for kind in kinds]


def cut(model: nn.Module, subnet: Subnet) -> None:
    """Make a model whose blocks have all parts compute as a subnet of it."""
    for parts, widths in zip(parts_of(model), subnet, strict=True):
        for part, width in zip(parts, widths, strict=True):
            part.width = width
    pass_on([module for module in model.modules() if isinstance(module, PromptedBlock)])


def pass_on(blocks: Sequence[PromptedBlock]) -> None:
    """Make prompts stay among the tokens up to the next block that has prompts, or the last."""
    here, own = 0, [0 if block.prompts is None else block.prompts.length for block in blocks]
    for block, length, after in zip(blocks, own, [*own[1:], None], strict=True):
        here = length or here
        block.removed = 0 if after == 0 else here


# The methods: one subnet, and the supernet.


class SlicedLoRA(LoRA):
    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: SlicedLinear}


class SlicedAdapter(PAdapter):
    def make_adapter(self, path: str, width: int, weight: Tensor) -> SlicedBottleneck:
        return SlicedBottleneck(self, path, width, weight)


class Composed(TyingSettings, Method):
    """LoRA on q, k and v, a bottleneck after the feed-forward part, and prompts, in each block of a width of its own.

    Targets, LoRA's form and the activation are those of the authors' code (ZhangYuanhan-AI/NOAH
    model/supernet_vision_transformer_timm.py:272-366, model/module/adapter_super.py:8-66 at e9c55f3). LoRA starts with
    B = 0, the adapter from N(0, 0.02), prompts as VPT's; there LoRA's B starts from N(0, 0.02) as well (line 686).

    A block takes part if an integration has put a layer for its class into `layers`.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = VPT.layers
    layers_from_integration: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = False

    dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        examples=["0.1"],
        description="Probability of dropping, in training, an entry of LoRA's input, of a hidden value or a prompt.",
    )
    targets: Literal["fused-qkv", "attention-qv"] = Field(
        default="fused-qkv", description="Of LoRA: one A for q, k and v, or q and v, each with factors of its own."
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
        candidates = self._lora(1).plan(model, roles).targets, self._adapter(1).plan(model, roles).targets
        chosen = [
            target
            for targets, widths in zip(candidates, subnet, strict=False)
            for target, width in zip(targets, widths, strict=True)
            if width
        ]
        return Plan((*blocks, *chosen), roles.head, roles.required_flags)

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
        layers = super().make_layers(modules, Plan(targets))
        blocks = [cast(PromptedBlock, layer) for layer in layers.values()]
        for block, width in zip(blocks, widths, strict=True):
            if width:
                config = VPTDeep(r=width, dropout=self.dropout, **self._tying())
                block.prompts = SlicedPrompts(config, block, embedding_fan_in(modules))
        pass_on(blocks)
        return layers

    def _lora(self, r: int) -> LoRA:
        return SlicedLoRA(r=r, dropout=self.dropout, targets=self.targets, **self._tying())

    def _adapter(self, r: int) -> PAdapter:
        return SlicedAdapter(r=r, dropout=self.dropout, init="official", **self._tying())

    def _tying(self) -> dict[str, Any]:
        return {name: value for name, value in self.shared().items() if name in TyingSettings.model_fields}


LARGEST_WIDTH = 65536
Numbers = Annotated[
    tuple[int, ...], Field(min_length=1), BeforeValidator(lambda v: tuple(v) if type(v) is list else v)
]
DIMS = ("lora_dim", "adapter_dim", "prompt_dim")


@register_method("noah", capaboost_noah=TIED, noah=PLAIN)
class NOAH(Composed):
    """One subnet as a method: its widths are settings, and it trains from scratch.

    A block with widths l, a and p has 4 w l entries for LoRA, 2 w a + a + w for the adapter, and w p for prompts.
    Prompts stay among the tokens up to the next block that has its own, or the last.
    """

    budget: ClassVar[str | None] = "r"

    r: int = Field(
        default=5, ge=1, le=LARGEST_WIDTH, description="Rank, width and number of prompts where they are not given."
    )
    lora_dim: int | Numbers | None = Field(
        default=None,
        json_schema_extra={"null": "r"},
        description="LoRA's rank, of all blocks or block by block; 0: none.",
    )
    adapter_dim: int | Numbers | None = Field(
        default=None, json_schema_extra={"null": "r"}, description="The bottleneck's width, likewise."
    )
    prompt_dim: int | Numbers | None = Field(
        default=None, json_schema_extra={"null": "r"}, description="Number of prompts, likewise."
    )

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """Without r, where all widths are given."""
        return super().used(values) - ({"r"} if all(values.get(name) is not None for name in DIMS) else set())

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        given = [self._dims(name) for name in DIMS]
        for name, dims in zip(DIMS, given, strict=True):
            if not all(0 <= width <= LARGEST_WIDTH for width in dims):
                refuse(name, getattr(self, name), f"type whole numbers from 0 to {LARGEST_WIDTH}")
        if not any(map(any, given)):
            refuse(DIMS[0], self.lora_dim, "all widths are 0; type one above 0, or choose method linear")
        if "r" not in self.used(self.__dict__) and self.r != type(self).model_fields["r"].default:
            refuse("r", self.r, f"it means nothing where {', '.join(DIMS)} are given; drop it")
        return self

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
    """All subnets of a space in one: each step samples one of them, which trains the first of the largest widths.

    Evaluation computes with all units. `capaboost noah` trains it, searches in it and trains what it finds. Dims,
    depths and the sampling are the authors' (experiments/NOAH/supernet/supernet-B_prompt.yaml,
    supernet_engine_prompt.py:18-26 at e9c55f3). Each process, and each slice of an accumulated batch, samples for
    itself.
    """

    dims: Numbers = Field(default=(5, 10, 50, 100), description="Widths that a part of a block may have.")
    depths: Numbers | None = Field(
        default=None,
        json_schema_extra={"null": "quarters of the blocks"},
        description="Numbers of blocks, from the first on, that may have a part.",
    )

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        for name in ("dims", "depths"):
            numbers = getattr(self, name) or (1,)
            if not (all(0 <= number <= LARGEST_WIDTH for number in numbers) and any(numbers)):
                refuse(name, numbers, f"type whole numbers from 0 to {LARGEST_WIDTH}, one of them above 0")
        return self

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
        """The largest subnet."""
        self.space(blocks)
        return Subnet(*((max(self.dims),) * blocks,) * len(DIMS))

    def fixed(self, subnet: Subnet) -> NOAH:
        """A subnet as the method that trains it from scratch."""
        return NOAH(**self.shared(), **dict(zip(DIMS, subnet, strict=True)))

    def objective(self, loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
        """The loss of a random subnet, sampled from the run's stream on the host: nothing waits for a device."""
        bare = unwrap(model)
        cut(bare, self.space(_blocks(bare)).random(random.Random(random.getrandbits(64))))
        return loss_of(model, batch)

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Restore all units for evaluation: only now, since a backward pass may compute layers once more."""
        cut(model, self.subnet(_blocks(model)))


def _blocks(model: nn.Module) -> int:
    return len(parts_of(model)[0])
