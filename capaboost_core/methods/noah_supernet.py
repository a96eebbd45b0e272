"""NOAH's supernet (Zhang et al., 2022, arXiv 2206.04673): all subnets share the first of the largest weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.methods.noah import DIMS, LARGEST, NOAH, Numbers
from capaboost_core.methods.noah_parts import Composed
from capaboost_core.methods.registry import register_method
from capaboost_core.methods.sliced import cut, parts_of
from capaboost_core.methods.subnets import Space, Subnet
from capaboost_core.settings.base import refuse
from capaboost_core.sharing.settings import PLAIN, TIED
from capaboost_core.wrappers import unwrap


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
        for name in ("dims", "depths"):
            numbers = getattr(self, name) or (1,)
            if not (all(0 <= number <= LARGEST for number in numbers) and any(numbers)):
                refuse(name, numbers, f"type whole numbers from 0 to {LARGEST}, one of them above 0")
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
        """The whole."""
        self.space(blocks)
        return Subnet(*((max(self.dims),) * blocks,) * len(DIMS))

    def fixed(self, subnet: Subnet) -> NOAH:
        """A subnet as the method that trains it from scratch."""
        return NOAH(**self.shared(), **dict(zip(DIMS, subnet, strict=True)))

    def objective(self, loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
        """The loss of a random subnet, drawn from the run's stream on the host: nothing waits for a device."""
        bare = unwrap(model)
        cut(bare, self.space(_blocks(bare)).random(random.Random(random.getrandbits(64))))
        return loss_of(model, batch)

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Whole again, for evaluation: only now, as a backward pass may compute layers once more."""
        cut(model, self.subnet(_blocks(model)))


def _blocks(model: nn.Module) -> int:
    return len(parts_of(model)[0])
