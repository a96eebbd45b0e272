"""References of the tests of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from capaboost_core.methods import resolve_config
from tests.compatibility.models import drawn

WIDTH, ROWS, DRAWS = 6, 3, 60


def adapter_of(preset: str, **changes) -> nn.Module:
    """What the method adds to one layer, in float64 with drawn values."""
    adapter = resolve_config(preset).replace(**changes).make_adapter("a", WIDTH, torch.zeros(1, dtype=torch.float64))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.copy_(drawn(name, tuple(parameter.shape), 1.0))
    return adapter


def matrices(adapter: nn.Module, name: str) -> Tensor:
    """The dense weight of a projection: (experts, out, in), of one expert where there are none."""
    weight = getattr(adapter, name)
    dense = weight.packed.view(weight.bits.shape)
    return dense if dense.ndim == 3 else dense.unsqueeze(0)


def biases(adapter: nn.Module, name: str) -> Tensor:
    return getattr(adapter, f"{name}_bias").view(len(matrices(adapter, name)), -1)


def seen(function: Callable[[], Tensor], choices: dict[object, Tensor], tolerance: float = 1e-9) -> set[object]:
    """Which of the choices come up in many calls; each call must give one of them."""
    found = set()
    for _ in range(DRAWS):
        out = function()
        matching = [
            key for key, choice in choices.items() if torch.allclose(out, choice, rtol=tolerance, atol=tolerance)
        ]
        assert len(matching) == 1
        found.add(matching[0])
    return found
