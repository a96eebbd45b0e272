"""Modules whose parameters get their initial values late, or belong to another module."""

# pyright: reportUnknownMemberType=false
# torch annotates nn.Module._apply only in part.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn


class ResetOnMaterialize(nn.Module):
    """A module whose own parameters are filled by `reset_parameters`, also when they leave the meta device."""

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
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
        """Drop own parameters, and read the owner's from now on; attached to itself, a module stays as it is."""
        if owner is self:
            return
        for name in names:
            delattr(self, name)
        owners = vars(self).setdefault("owners", {})
        owners |= dict.fromkeys(names, (owner,))  # in a tuple, since nn.Module would register it as a child

    def __getattr__(self, name: str) -> Any:
        owners: dict[str, tuple[nn.Module]] = vars(self).get("owners", {})
        return getattr(owners[name][0], name) if name in owners else super().__getattr__(name)
