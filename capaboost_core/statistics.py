"""Buffers that a forward pass in train mode moves, such as a BatchNorm's running statistics.

Those of a frozen module rest: it stays in eval mode, so that the base remains what it was. Those of a module that
trains move, and belong to what is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor, nn

from capaboost_core.layers import Adapted
from capaboost_core.plan import in_prefix
from capaboost_core.wrappers import strip_wrappers

# Of norms, and of the power iteration of spectral norm as a parametrization and as a hook.
MOVED = {"running_mean", "running_var", "_u", "_v", "weight_u", "weight_v"}


class Resting:
    """The `train` of a module with running statistics: while none of its parameters trains, it stays in eval mode."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        type(self.module).train(self.module, mode)
        self.module.training = mode and _trains(self.module)
        return self.module


def rest(model: nn.Module, head: Collection[str], trains: Callable[[str], bool]) -> None:
    """Let the statistics of all that is frozen rest, whatever mode the model is put into.

    Args:
        model: Its trainable parameters are set already.
        head: Path prefixes of what trains.
        trains: Whether the method trains a tensor of the base, by its name.
    """
    for path, module in model.named_modules():
        names = _named(path, module)
        if names and not any(trains(name) or any(in_prefix(name, prefix) for prefix in head) for name in names):
            module.train = Resting(module)
            module.train(module.training)


def wake(model: nn.Module) -> None:
    """Undo `rest`."""
    for module in model.modules():
        if _rests(module):
            del module.train
            module.training = model.training


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a bare model by name, with what is counted beside them."""
    return {name: buffer for path, module in model.named_modules() for name, buffer in _named(path, module).items()}


def moving(model: nn.Module) -> dict[str, Tensor]:
    """Those of them that move in training."""
    return {
        name: buffer
        for path, module in model.named_modules()
        if _trains(module) or not _rests(module)
        for name, buffer in _named(path, module).items()
    }


def _rests(module: nn.Module) -> bool:
    return isinstance(vars(module).get("train"), Resting)


def _named(path: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's own persistent buffers, if training moves some of them, by their names in the bare model."""
    hidden = module._non_persistent_buffers_set
    held = {name: b for name, b in module._buffers.items() if b is not None and name not in hidden}
    return {strip_wrappers(f"{path}.{name}").lstrip("."): b for name, b in held.items()} if held.keys() & MOVED else {}


def _trains(module: nn.Module) -> bool:
    """Whether a module trains a parameter of its own, an addition apart."""
    own = dict(module.named_parameters(recurse=False))
    adopted = module.adopted if isinstance(module, Adapted) else own
    return any(parameter.requires_grad for name, parameter in own.items() if name in adopted)
