"""Weights that share out one list of trained entries, which may move from one weight to another."""

# pyright: reportUnknownMemberType=false
# torch annotates from_numpy only in part.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaboost_core.sharing.masks import MaskSettings
from capaboost_core.sharing.tied import ResetOnMaterialize, TiedWeight

EMPTY = -1  # the slot of a position without an entry


class PooledWeight(TiedWeight):
    """A tied weight (..., rows, width) most of whose positions may be empty: the others have an entry of a pool.

    `slots` has for each position that some mask keeps, in row-major order, the index of its entry in the pool, or -1
    where the weight is zero. It is a frozen parameter of integers, so that files hold it and casts leave it alone.
    `packed` is read from the pool by it; nothing else differs from a weight that has entries of its own.

    Args:
        config: Gives num_tied and the kind of mask.
        first_rows: How many rows have entries at first.
        masks: All d masks, (..., rows, width).
        initial: Dense initial values of the same shape.
        initialise: Fills entries anew.
    """

    slots: nn.Parameter

    def __init__(
        self,
        config: MaskSettings,
        first_rows: int,
        masks: NDArray[np.uint8],
        initial: Tensor,
        initialise: Callable[[Tensor], Any],
    ):
        super().__init__(config, masks, initial, initialise)
        rows = np.zeros(masks.shape, dtype=bool)
        rows[..., :first_rows, :] = True
        self.full_at_first: NDArray[np.bool_] = rows[masks > 0]
        self.ones_at_first = int(np.unpackbits(masks[rows]).sum())
        self.first_entry = 0
        self.pool: tuple[Pool, ...] = ()
        self.slots = nn.Parameter(self.first_slots().to(initial.device), requires_grad=False)

    def join(self, pool: Pool, first_entry: int) -> None:
        """Read a pool's entries from now on, at first those from `first_entry` on."""
        self.first_entry, self.pool = first_entry, (pool,)  # in a tuple, since nn.Module would register it as a child
        del self.packed
        self.reset_parameters()

    def first_slots(self) -> Tensor:
        numbered = self.first_entry - 1 + self.full_at_first.cumsum()
        return torch.from_numpy(np.where(self.full_at_first, numbered, EMPTY).astype(np.int32))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.slots.copy_(self.first_slots())

    def __getattr__(self, name: str) -> Any:
        if name == "packed" and vars(self).get("pool"):
            return self.pool[0].read(self.slots)
        return super().__getattr__(name)

    @property
    def held(self) -> nn.Parameter:
        return self.slots if "slots" in self._parameters else self.packed

    @property
    def trains(self) -> bool:
        return self.pool[0].entries.requires_grad

    @property
    def kept(self) -> int:
        """The ones of all masks where there are entries; of a weight without values those of the start."""
        if self.slots.is_meta:
            return self.ones_at_first
        full = self.bits[self.bits > 0][self.slots >= 0]
        return int(((full.unsqueeze(0) & self.flags.flatten().unsqueeze(1)) > 0).sum())


class Pool(ResetOnMaterialize):
    """The trained entries (n, 1) of weights, as many as these have at first; those of a weight lie together then.

    Args:
        weights: Those that share it; they join it.
    """

    memory: dict[str, Tensor]  # what a method remembers of each entry

    def __init__(self, weights: Sequence[PooledWeight]):
        super().__init__()
        full = [torch.from_numpy(np.flatnonzero(weight.full_at_first)).to(weight.held.device) for weight in weights]
        first = [weight.packed.detach()[indices] for weight, indices in zip(weights, full, strict=True)]
        self.parts = [(len(values), weight.initialise) for values, weight in zip(first, weights, strict=True)]
        self.entries = nn.Parameter(torch.cat(first))
        begin = 0
        for weight, (size, _) in zip(weights, self.parts, strict=True):
            weight.join(self, begin)
            begin += size

    @torch.no_grad()
    def reset_parameters(self) -> None:
        parts = self.entries.split_with_sizes([size for size, _ in self.parts])
        for part, (_, initialise) in zip(parts, self.parts, strict=True):
            initialise(part)

    def read(self, slots: Tensor) -> Tensor:
        """The entries at slots as a column, zero where a slot is empty."""
        last = len(self.entries) - 1
        found = self.entries.index_select(0, slots.clamp(0, last))
        return found * ((slots >= 0) & (slots <= last)).unsqueeze(1).to(found.dtype)
