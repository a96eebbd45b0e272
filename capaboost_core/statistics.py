"""Buffers that a forward pass in train mode moves, such as a BatchNorm's running statistics.

A frozen module with such buffers stays in eval mode, so that the base model does not change. Those of a module that
trains change, and are saved with the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor, nn

from capaboost_core.layers import Adapted
from capaboost_core.plan import in_prefix
from capaboost_core.wrappers import strip_wrappers

# Buffers of norms, and of spectral norm's power iteration as a parametrization and as a hook.
MOVED_BUFFERS = {"running_mean", "running_var", "_u", "_v", "weight_u", "weight_v"}


class Resting:
    """Replaces `train` of a module with running statistics: it stays in eval mode while none of its parameters trains.

    It is set on the instance, since `model.train()` calls `train` of each child and nn.Module has no hook for it.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        type(self.module).train(self.module, mode)
        self.module.training = mode and _trains(self.module)
        return self.module


def rest(model: nn.Module, head: Collection[str], trains: Callable[[str], bool]) -> None:
    """Fix the running statistics of all frozen modules, whatever mode the model is put into.

    Args:
        model: A model whose parameters train or are frozen already.
        head: Path prefixes of the modules that train.
        trains: Whether the method trains a tensor of the base, by its name.
    """
    for path, module in model.named_modules():
        names = _named(path, module)
        if names and not any(trains(name) or any(in_prefix(name, prefix) for prefix in head) for name in names):
            vars(module)["train"] = Resting(module)
            module.train(module.training)


def wake(model: nn.Module) -> None:
    """Undo `rest`."""
    for module in model.modules():
        if _rests(module):
            del vars(module)["train"]
            module.training = model.training


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a bare model by name, with the other buffers of the modules that have them."""
    return {name: buffer for path, module in model.named_modules() for name, buffer in _named(path, module).items()}


def moving(model: nn.Module) -> dict[str, Tensor]:
    """The `statistics` that change in training."""
    return {
        name: buffer
        for path, module in model.named_modules()
        if _trains(module) or not _rests(module)
        for name, buffer in _named(path, module).items()
    }


def _rests(module: nn.Module) -> bool:
    return isinstance(vars(module).get("train"), Resting)


def _named(path: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's direct persistent buffers by their names in the bare model, if training changes some of them."""
    hidden = module._non_persistent_buffers_set
    saved = {name: b for name, b in module._buffers.items() if b is not None and name not in hidden}
    if not saved.keys() & MOVED_BUFFERS:
        return {}
    return {strip_wrappers(f"{path}.{name}").lstrip("."): buffer for name, buffer in saved.items()}


def _trains(module: nn.Module) -> bool:
    """Whether a direct parameter of a module trains that is not of an addition."""
    own = dict(module.named_parameters(recurse=False))
    adopted = module.adopted if isinstance(module, Adapted) else own
    return any(parameter.requires_grad for name, parameter in own.items() if name in adopted)
