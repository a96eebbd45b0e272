"""LoRA whose ranks move to the layers where they matter, under one budget of trained entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.layers import Adapted
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.lora_layer import LoRALayer
from capaboost_core.methods.method import register_method
from capaboost_core.plan import Plan
from capaboost_core.settings import refuse
from capaboost_core.sharing.masks import PLAIN, TIED, hash_random
from capaboost_core.sharing.pool import EMPTY, Pool, PooledWeight


@dataclass
class Positions:
    """All positions of the pooled weights of low-rank layers that may hold an entry, weight by weight.

    A component is a row of A with its column of B; those of an increment are numbered one after the other.

    Attributes:
        slots: The entry at each position, or -1.
        components: The component of each position.
        reach: New values at each position are uniform within +- this: the bound of A, and 0 for B.
        rows: Components of an increment.
    """

    slots: Tensor
    components: Tensor
    reach: Tensor
    rows: int

    @classmethod
    def of(cls, layers: Sequence[LoRALayer], rows: int) -> Positions:
        slots, components, reach, first = [], [], [], 0
        for layer in layers:
            which, row, _ = layer.lora_A.bits.nonzero(as_tuple=True)
            components.append(first + which * rows + row)
            row, column = layer.lora_B.bits.nonzero(as_tuple=True)
            ends = torch.tensor(layer.widths, device=column.device).cumsum(0)
            components.append(first + torch.bucketize(column, ends, right=True) * rows + row)
            for weight, bound in zip(_weights(layer), (layer.bound, 0.0), strict=True):
                slots.append(weight.slots)
                reach.append(torch.full_like(weight.slots, bound, dtype=torch.float64))
            first += len(layer.slices) * rows
        return cls(torch.cat(slots), torch.cat(components), torch.cat(reach), rows)

    def move(self, score: Tensor, pairs: int) -> Tensor:
        """Move components from the least important increments to the most important ones, which have room.

        Of each of the `pairs` increments of the smallest mean score, the component of the smallest mean score gives
        all its entries, and as many empty positions of an increment of the largest scores, in the order of its
        components, take them. An increment keeps one component at least, and no entry comes or goes.

        Args:
            score: Of each entry of the pool, (n).
            pairs: How many components move at most.

        Returns:
            The positions that were taken.
        """
        taken = [self._hand_over(giver, receiver, means) for giver, receiver, means in self._pairs(score, pairs)]
        return torch.cat(taken) if taken else self.slots.new_empty(0, dtype=torch.long)

    def _pairs(self, score: Tensor, pairs: int) -> Iterator[tuple[int, int, Tensor]]:
        """Increments that give and take, and the mean scores of the giver's components, infinite for empty ones."""
        full = self.slots >= 0
        size = len(self.components) and int(self.components.max()) + 1
        scores = torch.where(full, score[self.slots.clamp(min=0)], 0.0)
        total = scores.new_zeros(size).index_add(0, self.components, scores).view(-1, self.rows)
        count, capacity = (
            torch.bincount(self.components, weights=values, minlength=size).view(-1, self.rows).cpu()
            for values in (full.double(), torch.ones_like(full, dtype=torch.float64))
        )
        total, means = total.cpu(), (total.cpu() / count).masked_fill(count == 0, torch.inf)
        importance = total.sum(1) / count.sum(1)
        rising = importance.argsort(stable=True).tolist()
        givers = [i for i in rising if (count[i] > 0).sum() > 1]
        receivers = [i for i in reversed(rising) if (count[i] < capacity[i]).any()]
        for giver, receiver in list(zip(givers, receivers, strict=False))[:pairs]:
            if importance[giver] < importance[receiver]:
                yield giver, receiver, means[giver]

    def _hand_over(self, giver: int, receiver: int, means: Tensor) -> Tensor:
        component = giver * self.rows + int(means.argmin())
        left = ((self.components == component) & (self.slots >= 0)).nonzero().flatten()
        empty = ((self.components // self.rows == receiver) & (self.slots < 0)).nonzero().flatten()
        empty = empty[self.components[empty].argsort(stable=True)][: len(left)]
        left = left[: len(empty)]
        self.slots[empty], self.slots[left] = self.slots[left], EMPTY
        return empty


PAIRS = 8  # one component moves for so many increments, at a time


@register_method("lora-allocated", capaboost_lora_allocated=TIED, lora_allocated=PLAIN)
class AllocatedLoRA(LoRA):
    """LoRA with r ranks for each increment at first, which move between layers in the first part of training.

    All increments share one list of trained entries, as many as they have at first, so that the budget holds at each
    step. At intervals the least important increments give a component, a row of A with its column of B, to the most
    important ones, where B starts from zero (the future work of arXiv 2407.01320, sections 5.2 and 6). Importance is
    that of AdaLoRA (Zhang et al., 2023, arXiv 2303.10512, Eq. 9-11): for each entry a running mean of |weight *
    gradient|, times one of how far it is from that; of a component and of an increment the mean over its entries.
    """

    max_r: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        examples=["16"],
        json_schema_extra={"null": "2 r"},
        description="Largest rank of an increment.",
    )
    allocation_share: float = Field(default=1 / 3, ge=0, le=1, description="Share of the steps in which ranks move.")
    interval: int = Field(default=10, ge=1, description="Steps from one allocation of ranks to the next.")
    beta1: float = Field(default=0.85, gt=0, lt=1, description="Of the running mean of importance.")
    beta2: float = Field(default=0.85, gt=0, lt=1, description="Of the running mean of its uncertainty.")

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.max_r is None:
            self.derive("max_r", 2 * self.r)
        if (self.max_r or 0) < self.r:
            refuse("max_r", self.max_r, f"ranks start at r, which is {self.r}; type {2 * self.r}")
        return self

    @property
    def rows(self) -> int:
        return self.max_r or 2 * self.r

    def make_weight(
        self,
        name: str,
        masks: Callable[[], Any],
        initial: Tensor,
        initialise: Callable[[Tensor], Any],
        parts: Sequence[int] = (),
    ) -> nn.Module:
        return PooledWeight(self, self.r, masks(), initial, initialise)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """The first layer holds what all share."""
        layers = super().make_layers(modules, plan)
        weights = [weight for layer in layers.values() for weight in _weights(cast(LoRALayer, layer))]
        next(iter(layers.values())).pool = Pool(weights)
        return layers

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """In the first part: measure importance, and at intervals move components."""
        if step > self.allocation_share * steps:
            return
        layers = _layers(model)
        pool = _pool(layers)
        memory = _memory(pool)
        assert pool.entries.grad is not None, "called after the backward pass"
        product = pool.entries * pool.entries.grad
        sensitivity = product.abs().nan_to_num(0, 0, 0)  # with fp16 a step that overflows is left out
        memory["importance"].lerp_(sensitivity, 1 - self.beta1)
        memory["uncertainty"].lerp_((sensitivity - memory["importance"]).abs(), 1 - self.beta2)
        if step % self.interval == 0:
            self._allocate(layers, step)

    def _allocate(self, layers: list[LoRALayer], step: int) -> None:
        pool = _pool(layers)
        memory = _memory(pool)
        positions = Positions.of(layers, self.rows)
        increments = sum(len(layer.slices) for layer in layers)
        score = (memory["importance"] * memory["uncertainty"]).flatten()
        taken = positions.move(score, max(1, increments // PAIRS))
        if not len(taken):
            return
        words = torch.from_numpy(
            (hash_random(f"{self.seed}/allocation/{step}", (len(taken),)) >> 11).astype("float64")
        )
        uniform = (words / 2**52 - 1).to(positions.reach.device)
        moved = positions.slots[taken]
        pool.entries[moved] = (positions.reach[taken] * uniform).to(pool.entries.dtype).unsqueeze(1)
        for values in memory.values():
            values[moved] = 0.0
        for slots, new in zip(_slots(layers).values(), positions.slots.split(_sizes(layers)), strict=True):
            slots.copy_(new)

    def problem(self, model: nn.Module) -> str | None:
        """Averaging models whose ranks have moved leaves slots that no longer name each entry once."""
        layers = _layers(model)
        slots = torch.cat(list(_slots(layers).values()))
        entries = torch.arange(len(_pool(layers).entries), dtype=slots.dtype, device=slots.device)
        if bool((slots >= EMPTY).all()) and torch.equal(slots[slots >= 0].sort().values, entries):
            return None
        return (
            "its entries do not have one position each, as after averaging models whose ranks moved; begin to "
            "average after allocation_share of the steps"
        )

    def state(self, model: nn.Module) -> dict[str, Any]:
        layers = _layers(model)
        return {"memory": _memory(_pool(layers)), "slots": {n: s.detach() for n, s in _slots(layers).items()}}

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        layers = _layers(model)
        for name, slots in _slots(layers).items():
            slots.copy_(state["slots"][name])
        for name, values in _memory(_pool(layers)).items():
            values.copy_(state["memory"][name])


def _layers(model: nn.Module) -> list[LoRALayer]:
    return [module for module in model.modules() if isinstance(module, LoRALayer)]


def _slots(layers: list[LoRALayer]) -> dict[str, nn.Parameter]:
    """Of all weights, in the order of `Positions`."""
    names = ("lora_A", "lora_B")
    return {
        f"{layer.path}.{name}": weight.slots
        for layer in layers
        for name, weight in zip(names, _weights(layer), strict=True)
    }


def _weights(layer: LoRALayer) -> tuple[PooledWeight, PooledWeight]:
    return cast(PooledWeight, layer.lora_A), cast(PooledWeight, layer.lora_B)


def _pool(layers: list[LoRALayer]) -> Pool:
    return cast(Pool, layers[0].pool)


def _sizes(layers: list[LoRALayer]) -> list[int]:
    return [len(slots) for slots in _slots(layers).values()]


def _memory(pool: Pool) -> dict[str, Tensor]:
    """Importance and uncertainty of each entry, (n, 1)."""
    if not hasattr(pool, "memory"):
        pool.memory = {name: torch.zeros_like(pool.entries) for name in ("importance", "uncertainty")}
    return pool.memory
