"""One parameter that several modules use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# Parameters that have their first values wherever they get memory.


class ResetOnMaterialize(nn.Module):
    """A module whose own parameters are filled by `reset_parameters`, also when they leave the meta device."""

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ResetOnMaterialize:
        was_meta = self._is_meta()
        super()._apply(fn, recurse)
        if was_meta and not self._is_meta():
            self.reset_parameters()
        return self

    def _is_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.parameters(recurse=False))


class SharedParameters(nn.Module):
    """A module that reads some parameters of another one, which alone registers, moves and saves them.

    One parameter that two modules register becomes two when a model leaves the meta device, and training would go on
    without a word; this stays one.
    """

    def attach_shared(self, owner: nn.Module, *names: str) -> None:
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
