"""Whether what a method trains has an effect in a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from capaboost_core import UserError, trainable_parameters
from capaboost_core.injection import adapted_layers, own_parameters

# All but VPT, which is made for one class of blocks, and what has tests of its own on every family.
METHODS = (
    *("adaptformer", "repadapter", "fact-tt", "fact-tk", "ssf", "hadamard", "bitfit"),
    *("adakron", "adamix", "compacter", "propetl-lora"),
)


def without_effect(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> list[str]:
    """Trained parameters without a gradient, once the additions are large enough to be seen."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in own_parameters(adapted_layers(model)).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    run(model).square().sum().backward()
    trained = trainable_parameters(model).items()
    return [name for name, p in trained if p.grad is None or not p.grad.any()]


def check_each(
    create: Callable[[], nn.Module],
    inject: Callable[[nn.Module, str], nn.Module],
    run: Callable[[nn.Module], Tensor],
    refused: dict[str, str],
) -> None:
    """Each method on a fresh model: it has an effect, or says in a line why it is not there."""
    for method in {*METHODS, *refused}:
        if method in refused:
            with pytest.raises(UserError, match=refused[method]):
                inject(create(), method)
        else:
            assert without_effect(inject(create(), method), run) == [], method
