"""Parameters that have their first values wherever they get memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class FirstValues(nn.Module):
    """A module whose own parameters are filled by `reset_parameters`, also when they leave the meta device."""

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FirstValues:
        was_meta = self._is_meta()
        super()._apply(fn, recurse)
        if was_meta and not self._is_meta():
            self.reset_parameters()
        return self

    def _is_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.parameters(recurse=False))
