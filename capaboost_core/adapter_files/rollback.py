"""Atomic changes to a model: what fails is rolled back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def undone_on_error(model: nn.Module, written: Iterable[Tensor]) -> Iterator[None]:
    """Within the context the model may change; on any error it is as it was, down to its hooks and attributes.

    Args:
        model: The model that changes.
        written: The parameters and buffers whose values change; their values are kept beside them for so long.
    """
    modules = [(module, _contents(module)) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    values = [(parameter, parameter.detach().clone()) for parameter in written]
    try:
        yield
    except BaseException:
        for module, contents in modules:
            vars(module).clear()
            vars(module).update(contents)
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        raise


def _contents(module: nn.Module) -> dict[str, Any]:
    """What a module holds, its containers copied: those of parameters, children and hooks are changed in place."""
    return {name: value.copy() if isinstance(value, (dict, set)) else value for name, value in vars(module).items()}
