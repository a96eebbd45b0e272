"""Ranks that move between increments: which component gives its entries, and where they go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capaboost_core.adapted import Adapted
from capaboost_core.sharing.pool import NONE


@dataclass
class Places:
    """All places of the pooled weights of low-rank layers, weight by weight.

    A component is a row of A with its column of B; those of an increment are numbered one after the other.

    Attributes:
        slots: The entry at each place, or -1.
        components: The component of each place.
        reach: New values at each place are uniform within +- this: the bound of A, and 0 for B.
        rows: Components of an increment.
    """

    slots: Tensor
    components: Tensor
    reach: Tensor
    rows: int

    @classmethod
    def of(cls, layers: Sequence[Adapted], rows: int) -> Places:
        slots, components, reach, first = [], [], [], 0
        for layer in layers:
            which, row, _ = layer.lora_A.bits.nonzero(as_tuple=True)
            components.append(first + which * rows + row)
            row, column = layer.lora_B.bits.nonzero(as_tuple=True)
            ends = torch.tensor(layer.widths, device=column.device).cumsum(0)
            components.append(first + torch.bucketize(column, ends, right=True) * rows + row)
            for weight, bound in ((layer.lora_A, layer.bound), (layer.lora_B, 0.0)):
                slots.append(weight.slots)
                reach.append(torch.full_like(weight.slots, bound, dtype=torch.float64))
            first += len(layer.slices) * rows
        return cls(torch.cat(slots), torch.cat(components), torch.cat(reach), rows)

    def move(self, score: Tensor, pairs: int) -> Tensor:
        """Move components from the least important increments to the most important ones, which have room.

        Of each of the `pairs` increments of the smallest mean score, the component of the smallest mean score gives
        all its entries, and as many empty places of an increment of the largest scores, in the order of its
        components, take them. An increment keeps one component at least, and no entry comes or goes.

        Args:
            score: Of each entry of the pool, (n).
            pairs: How many components move at most.

        Returns:
            The places that were taken.
        """
        taken = [self._hand_over(giver, receiver, means) for giver, receiver, means in self._pairs(score, pairs)]
        return torch.cat(taken) if taken else self.slots.new_empty(0, dtype=torch.long)

    def _pairs(self, score: Tensor, pairs: int) -> Iterator[tuple[int, int, Tensor]]:
        """Increments that give and take, and the mean scores of the giver's components, infinite for empty ones."""
        full = self.slots >= 0
        size = len(self.components) and int(self.components.max()) + 1
        scores = torch.where(full, score[self.slots.clamp(min=0)], 0.0)
        total = scores.new_zeros(size).index_add(0, self.components, scores).view(-1, self.rows)
        count, places = (
            torch.bincount(self.components, weights=values, minlength=size).view(-1, self.rows).cpu()
            for values in (full.double(), torch.ones_like(full, dtype=torch.float64))
        )
        total, means = total.cpu(), (total.cpu() / count).masked_fill(count == 0, torch.inf)
        importance = total.sum(1) / count.sum(1)
        rising = importance.argsort(stable=True).tolist()
        givers = [i for i in rising if (count[i] > 0).sum() > 1]
        receivers = [i for i in reversed(rising) if (count[i] < places[i]).any()]
        for giver, receiver in list(zip(givers, receivers, strict=False))[:pairs]:
            if importance[giver] < importance[receiver]:
                yield giver, receiver, means[giver]

    def _hand_over(self, giver: int, receiver: int, means: Tensor) -> Tensor:
        component = giver * self.rows + int(means.argmin())
        left = ((self.components == component) & (self.slots >= 0)).nonzero().flatten()
        empty = ((self.components // self.rows == receiver) & (self.slots < 0)).nonzero().flatten()
        empty = empty[self.components[empty].argsort(stable=True)][: len(left)]
        left = left[: len(empty)]
        self.slots[empty], self.slots[left] = self.slots[left], NONE
        return empty
