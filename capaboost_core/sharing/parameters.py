"""Parameters of additions beside tied weights: filled anew after the meta device, and used by several modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Filled(nn.Module):
    """A module that fills its own parameters, and does so anew when they leave the meta device."""

    def reset_parameters(self) -> None:
        """Fill the own parameters, not those of children."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        was_meta = self._on_meta()
        super()._apply(fn, recurse)
        if was_meta and not self._on_meta():
            with torch.no_grad():
                self.reset_parameters()
        return self

    def _on_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.parameters(recurse=False))


class Borrower(nn.Module):
    """A module that reads some parameters of another one, which alone registers, moves and saves them.

    One parameter that two modules register becomes two when a model leaves the meta device, and training would go on
    without a word; this stays one.
    """

    def borrow(self, owner: nn.Module, *names: str) -> None:
        """Drop own parameters, and read the owner's from now on; of itself a module borrows nothing."""
        if owner is self:
            return
        for name in names:
            del self._parameters[name]
        lenders = vars(self).setdefault("lenders", {})
        lenders |= dict.fromkeys(names, (owner,))  # in a tuple: as an attribute it would be a child

    def __getattr__(self, name: str) -> Any:
        lenders = vars(self).get("lenders", {})
        return getattr(lenders[name][0], name) if name in lenders else super().__getattr__(name)
