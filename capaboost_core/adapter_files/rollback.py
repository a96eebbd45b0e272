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
        for module, (contents, containers) in modules:
            vars(module).clear()
            vars(module).update(contents)
            for container, content in containers:
                container.clear()
                container.update(content)
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        raise


def _contents(module: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """What a module holds, and its containers with copies: those of parameters, children and hooks change in place.

    They stay the same objects, to which the handles of hooks refer.
    """
    held = dict(vars(module))
    return held, [(value, value.copy()) for value in held.values() if isinstance(value, (dict, set))]
