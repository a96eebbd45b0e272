"""A weight that is shared by layers and seen through masks which training learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.sharing.tied import ResetOnMaterialize, SharedParameters


class LearnedMaskWeight(ResetOnMaterialize, SharedParameters):
    """d views w * m_i of a prototype w (..., r, width), where m_i keeps the entries with the largest scores |s_i|.

    Each mask has round(density * numel) ones. The gradient of a mask entry goes straight through to its |s_i| (Zeng et
    al., 2023, arXiv 2305.17682; ChaosCodes/ProPETL propetl-roberta/src/transformers/adapters/modeling.py:815-834, 862
    @1c08f19). Layers may share one prototype; each has scores.

    Args:
        prototype: Initial values of w.
        initialise: Fills w anew.
        density: Share of the entries that a mask keeps.
        num_tied: d.
        bound: The scores start uniformly within +-bound.
        parts: Widths along the last dimension with masks of their own; leading dimensions always have theirs.

    Raises:
        UserError: If a mask would keep nothing.
    """

    def __init__(
        self,
        prototype: Tensor,
        initialise: Callable[[Tensor], Any],
        density: float,
        num_tied: int,
        bound: float,
        parts: Sequence[int] = (),
    ):
        super().__init__()
        *leading, r, width = prototype.shape
        self.initialise, self.bound, self.parts = initialise, bound, tuple(parts) or (width,)
        self.ones = [round(density * r * part) for part in self.parts]
        if not all(self.ones):
            raise UserError(f"density {density} keeps no entry of a weight of {r} x {min(self.parts)}; raise it, or r")
        self.prototype = nn.Parameter(prototype.contiguous())
        self.scores = nn.Parameter(prototype.new_empty(*leading, num_tied, r, width))
        nn.init.uniform_(self.scores, -bound, bound)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.scores, -self.bound, self.bound)
        if "prototype" in self._parameters:
            self.initialise(self.prototype)

    @property
    def trains(self) -> bool:
        return self.prototype.requires_grad or self.scores.requires_grad

    @property
    def executed(self) -> int:
        """Multiply-adds of a row with all views, as dense kernels do them."""
        return self.scores.numel()

    @property
    def kept(self) -> int:
        """The ones of all masks."""
        return self.scores.shape[:-2].numel() * sum(self.ones)

    def masks(self) -> Tensor:
        """The masks (..., d, r, width) as zeros and ones."""
        pairs = zip(self.scores.detach().abs().split_with_sizes(self.parts, -1), self.ones, strict=True)
        return torch.cat([_largest(part, ones) for part, ones in pairs], -1)

    def copies(self, training: bool | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The views (..., d, r, width), the same in training or not; by default in the precision of the prototype."""
        magnitude = self.scores.abs()
        views = self.prototype.unsqueeze(-3) * (self.masks() + (magnitude - magnitude.detach()))
        return views.to(dtype or views.dtype)


def _largest(values: Tensor, ones: int) -> Tensor:
    """1 at the largest entries of each matrix, 0 elsewhere."""
    flat = values.flatten(-2)
    largest = flat.topk(ones, sorted=False).indices
    return torch.zeros_like(flat).scatter_(-1, largest, 1.0).view(values.shape)
