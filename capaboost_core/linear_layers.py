"""The classes of linear layers, and the shape of the matrix that each holds."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from capaboost_core.integrations import complete

# By class: (out, in) of a layer. An integration adds what its library has of its own, as transformers' Conv1D.
SHAPES: dict[type[nn.Module], Callable[[nn.Module], tuple[int, int]]] = {
    nn.Linear: lambda layer: (layer.out_features, layer.in_features)
}


def linear_shape(layer: nn.Module | None) -> tuple[int, int] | None:
    """(out, in) of a linear layer; None of any other module."""
    complete()
    return next((shape(layer) for cls, shape in SHAPES.items() if isinstance(layer, cls)), None)
