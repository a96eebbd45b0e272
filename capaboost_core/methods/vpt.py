"""Visual prompt tuning (Jia et al., 2022): trained tokens among those of the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, MacCount, dropout_of, empty_like_weight
from capaboost_core.methods.method import Method, register_method
from capaboost_core.plan import Plan, Roles, Target
from capaboost_core.sharing.masks import PLAIN, TIED, mask_bits
from capaboost_core.sharing.tied import TiedWeight, TyingSettings


class VPT(TyingSettings, Method):
    """r prompts that each block's tokens attend to; d masked views of them, so d * r tokens.

    They start from U(-v, v) with v = sqrt(6 / (fan-in of the embedding of patches + width)), Xavier's bound, as in the
    authors' code (KMnP/vpt src/models/vit_prompt/vit.py:55-70 at 4410440). The prompts are tokens behind the others
    there are: their order means nothing to an attention without positions. They are gone before the head, which reads
    the image's tokens.

    A block takes part if an integration has put a layer for its class into `layers`.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {}
    layers_from_integration: ClassVar[bool] = True
    recipe: ClassVar[str] = "padapter"
    budget: ClassVar[str | None] = "r"
    starts_as_base: ClassVar[bool] = False

    r: int = Field(default=10, ge=1, le=65536, description="Number of prompts of one module.")
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Probability of dropping an entry of a prompt in training."
    )

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """Each block."""
        return Plan(roles.targets(("block",)), roles.head, roles.required_flags)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        layers = super().make_layers(modules, plan)
        blocks = [cast(PromptedBlock, layer) for layer in layers.values()]
        self.place(blocks, embedding_fan_in(modules))
        return layers

    def place(self, blocks: list[PromptedBlock], fan_in: int) -> None:
        """Set, for each block in order, the prompts that it adds to its tokens and the number that it removes."""
        raise NotImplementedError


@register_method("vpt-deep", capaboost_vpt_deep=TIED, vpt_deep=PLAIN)
class VPTDeep(VPT):
    """Prompts of its own for each block, which replace those that come out of the block before."""

    def place(self, blocks: list[PromptedBlock], fan_in: int) -> None:
        for block in blocks:
            block.prompts = Prompts(self, block, fan_in)
            block.removed = block.prompts.length


@register_method("vpt-shallow", capaboost_vpt_shallow=TIED, vpt_shallow=PLAIN)
class VPTShallow(VPT):
    """Prompts among the tokens that the first block gets, which pass through all blocks."""

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """The first and the last block, which takes the prompts out."""
        targets = super().plan(model, roles).targets
        return Plan(tuple(dict.fromkeys((targets[0], targets[-1]))), roles.head, roles.required_flags)

    def place(self, blocks: list[PromptedBlock], fan_in: int) -> None:
        first, last = (block.path.rpartition(".")[0] for block in (blocks[0], blocks[-1]))
        if first != last:
            raise UserError(
                f"method {self.name} passes its prompts on, but {first} is followed by {last}; choose vpt-deep"
            )
        blocks[0].prompts = Prompts(self, blocks[0], fan_in)
        blocks[-1].removed = blocks[0].prompts.length


def embedding_fan_in(modules: Mapping[str, nn.Module]) -> int:
    """The fan-in of the embedding of patches, the first layer of a model."""
    embedding = next(module for module in modules.values() if isinstance(module, (nn.Conv2d, nn.Linear)))
    return embedding.weight[0].numel()


class Prompts(nn.Module):
    """The d masked views of r prompts, as d * r tokens.

    Args:
        config: The method's configuration.
        block: The block that gets them.
        fan_in: Of the embedding of patches.
    """

    def __init__(self, config: VPT, block: PromptedBlock, fan_in: int):
        super().__init__()
        start = empty_like_weight(block.like, config.r, len(block.like))
        bound = math.sqrt(6 / (fan_in + start.shape[1]))
        fill = partial(nn.init.uniform_, a=-bound, b=bound)
        self.tokens = TiedWeight(config, mask_bits(config, block.path, "prompts", start.shape), fill(start), fill)
        self.dropout, self.num_tied, self.r = dropout_of(config.dropout), config.num_tied, config.r
        self.train(block.training)

    @property
    def length(self) -> int:
        """How many tokens it adds."""
        return self.num_tied * self.r

    def copies(self) -> Tensor:
        """The masked views (d, r, width)."""
        return self.tokens.copies()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, tokens, width) -> (batch, tokens + d*r, width)."""
        prompts = self.copies().flatten(0, 1).to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([x, self.dropout(prompts)], 1)


class PromptedBlock(Adapted):
    """A block of tokens (batch, tokens, width) that sees prompts behind them.

    Args:
        base: The frozen block to adopt.
        config: The method's configuration.
        target: Path of the block.

    Attributes:
        prompts: Those that it adds to its tokens, if it does.
        removed: How many it takes from the end of what it gives.
        like: A frozen weight (width, ..) of the block.
    """

    counted_in_trace: ClassVar[bool] = True
    not_mergeable_because: str = "tokens of its own"

    def __init__(self, base: nn.Module, config: VPT, target: Target):
        self.adopt(base, target.path)
        self.prompts: Prompts | None = None
        self.removed = 0

    @property
    def like(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x (batch, tokens, width) -> the same, with the prompts where they are passed on.

        Raises:
            UserError: With a mask, which says nothing of prompts.
        """
        if not self.enabled:
            return super().forward(x, attn_mask, is_causal)
        if attn_mask is not None or is_causal:
            raise UserError(f"{self.path} has prompts and takes no mask; leave attn_mask and is_causal out")
        y = super().forward(x if self.prompts is None else self.prompts(x))
        return y[:, : y.shape[1] - self.removed]

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """None: the prompts meet frozen weights alone."""
        return []
