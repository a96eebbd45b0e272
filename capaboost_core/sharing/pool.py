"""Weights that share out one list of trained entries, which may move from one weight to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from capaboost_core.sharing.parameters import ResetOnMaterialize
from capaboost_core.sharing.tied import TiedWeight

if TYPE_CHECKING:
    from capaboost_core.sharing.tied import TyingSettings

NONE = -1  # the slot of a place without an entry


class PooledWeight(TiedWeight):
    """A tied weight (..., rows, width) most of whose places may be empty: the others have an entry of a pool.

    `slots` says for each place that some mask keeps, in row-major order, which entry of the pool stands there, or -1:
    then it is zero. It is a frozen parameter of integers, so that files hold it and casts leave it alone. `packed` is
    read from the pool by it; nothing else differs from a weight that has entries of its own.

    Args:
        config: Gives num_tied, the kind of mask, and in `r` the rows that have entries at first.
        masks: All d masks, (..., rows, width).
        initial: Dense initial values of the same shape.
        initialise: Fills entries anew.
    """

    def __init__(self, config: TyingSettings, masks: np.ndarray, initial: Tensor, initialise: Callable[[Tensor], Any]):
        super().__init__(config, masks, initial, initialise)
        rows = np.broadcast_to(np.arange(masks.shape[-2])[:, None], masks.shape) < config.r
        self.full_at_first = rows[masks > 0]
        self.ones_at_first = int(np.unpackbits(masks[rows]).sum())
        self.first_entry, self.pool = 0, ()
        self.slots = nn.Parameter(self.first_slots().to(initial.device), requires_grad=False)

    def join(self, pool: Pool, first_entry: int) -> None:
        """Read a pool's entries from now on, at first those from `first_entry` on."""
        self.first_entry, self.pool = first_entry, (pool,)  # in a tuple: as an attribute it would be a child
        del self.packed
        self.reset_parameters()

    def first_slots(self) -> Tensor:
        numbered = self.first_entry - 1 + self.full_at_first.cumsum()
        return torch.from_numpy(np.where(self.full_at_first, numbered, NONE).astype(np.int32))

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
    """The trained entries (n, 1) of weights, as many as these have at first; a weight's lie together then.

    Args:
        weights: Those that share it; they join it.
    """

    def __init__(self, weights: Sequence[PooledWeight]):
        super().__init__()
        full = [torch.from_numpy(np.flatnonzero(weight.full_at_first)).to(weight.held.device) for weight in weights]
        first = [weight.packed.detach()[places] for weight, places in zip(weights, full, strict=True)]
        self.parts = [(len(values), weight.initialise) for values, weight in zip(first, weights, strict=True)]
        self.entries = nn.Parameter(torch.cat(first))
        begin = 0
        for weight, (size, _) in zip(weights, self.parts, strict=True):
            weight.join(self, begin)
            begin += size

    @torch.no_grad()
    def reset_parameters(self) -> None:
        parts = self.entries.split([size for size, _ in self.parts])
        for part, (_, initialise) in zip(parts, self.parts, strict=True):
            initialise(part)

    def read(self, slots: Tensor) -> Tensor:
        """The entries of slots as a column, zero for those that name none."""
        last = len(self.entries) - 1
        found = self.entries.index_select(0, slots.clamp(0, last))
        return found * ((slots >= 0) & (slots <= last)).unsqueeze(1).to(found.dtype)
