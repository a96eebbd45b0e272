"""The modes of an adapted model: adapted, merged, or disabled; and `unload`, the way back to a plain model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.injection import adapted_layers, check_not_mixed, injection_of, remove_injection
from capaboost_core.layers import Adapted, Mergeable
from capaboost_core.wrappers import is_sharded, swap

LOCK = threading.RLock()  # for the counts of a model's layers, which all threads that evaluate it share


@contextmanager
def disable(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context the model computes as its base with the trained head, merged or not.

    As with `torch.no_grad`, that holds for the thread that enters it; compiled code is disabled for all threads.
    """
    with disabled(adapted_layers(model)):
        yield model


@contextmanager
def disabled(layers: list[Adapted]) -> Iterator[None]:
    """Within the context these layers compute as their bases."""
    thread = threading.get_ident()  # another thread may leave the context, as with generators
    _count_disabled(layers, thread, 1)
    try:
        yield
    finally:
        _count_disabled(layers, thread, -1)


def merge(model: nn.Module) -> nn.Module:
    """Compute with W + delta W in each adapted layer, so that the model runs as fast as its base.

    The merged weights are stored separately; the frozen weights never change. The state dict of a merged model is that
    of the unmerged one, and `load_state_dict` merges again what it loads. A training step raises an error until
    `unmerge`; in evaluation gradients reach the input but not the additions. `unload` gives plain layers that hold the
    merged weights.

    Raises:
        UserError: If the method adds what no weight can hold, such as an adapter's nonlinearity, or the weights are
            sharded over processes. No layer is merged then.
    """
    layers = _mergeable_layers(model)
    with LOCK:
        for layer in layers:
            layer.merge()
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge`."""
    layers = _mergeable_layers(model)
    with LOCK:
        for layer in layers:
            layer.unmerge()
    return model


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context all layers that can be merged are: evaluation at the speed of the base model.

    Layers that cannot be merged stay as they are. Contexts may be nested, and overlap in several threads.
    """
    check_not_mixed(model)
    layers = [layer for layer in _mergeable(adapted_layers(model)) if not _sharded(layer)]
    entered: list[Mergeable] = []
    try:
        for layer in layers:
            with LOCK:
                layer.count_merging(1)
            entered.append(layer)
        yield model
    finally:
        with LOCK:
            for layer in entered:
                layer.count_merging(-1)


def unload(model: nn.Module, merge: bool = True) -> nn.Module:
    """Put plain layers back, with the additions merged in or dropped; the trained head stays.

    The state dict then loads strictly into the plain model of timm or transformers, and another adapter can be
    injected. What `inject` froze stays frozen. Adapters that are not active are dropped.

    Args:
        model: An adapted model.
        merge: Merge the additions into the weights; if false they are dropped, of any method.

    Raises:
        UserError: With `merge`, as for `merge(model)`. The model is then as it was.
    """
    plain: dict[nn.Module, nn.Module]
    check_not_mixed(model)
    if merge:
        plain = {layer: layer.plain_merged() for layer in _mergeable_layers(model)}
    else:
        plain = {layer: layer.plain() for layer in adapted_layers(model)}
    swap(model, plain)
    return remove_injection(model)


def _count_disabled(layers: list[Adapted], thread: int, change: int) -> None:
    """Add to a thread's number of contexts; other threads may read the counts meanwhile."""
    with LOCK:
        for layer in layers:
            counts = layer.contexts | {thread: layer.contexts.get(thread, 0) + change}
            layer.contexts = {key: count for key, count in counts.items() if count}


def _mergeable(layers: list[Adapted]) -> list[Mergeable]:
    return [layer for layer in layers if isinstance(layer, Mergeable) and layer.mergeable]


def _mergeable_layers(model: nn.Module) -> list[Mergeable]:
    """All adapted layers.

    Raises:
        UserError: If one of them cannot be merged.
    """
    check_not_mixed(model)
    method = injection_of(model).config.method
    layers = adapted_layers(model)
    reason = next((layer.not_mergeable_because for layer in layers if not layer.mergeable), None)
    if reason:
        raise UserError(f"{method} has {reason} and cannot be merged into a weight; run it as it is")
    if any(map(_sharded, layers)):
        raise UserError(
            "the weights are sharded over processes and cannot be merged; "
            "save_adapter, then load_adapter into an unsharded base model and merge that"
        )
    return _mergeable(layers)


def _sharded(layer: Adapted) -> bool:
    return any(is_sharded(parameter) for parameter in layer.parameters())
