"""Unwrapping of compiled, parallel and averaged models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from capaboost_core.errors import UserError

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
TIMM_AVERAGES = {"ModelEmaV2", "ModelEmaV3"}  # by name: the core does not import timm
PLAIN = (nn.Parameter, Tensor, FakeTensor)
INNER = {"_orig_mod", "_checkpoint_wrapped_module"}  # where torch.compile and activation checkpointing keep a module


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, (Distributed)DataParallel, AveragedModel and timm's ModelEmaV2 and V3.

    Raises:
        UserError: If the wrapper is FSDP's first version, which keeps flat parameters without names.
    """
    while True:
        names = {cls.__name__ for cls in type(model).__mro__}
        if "FullyShardedDataParallel" in names:
            raise UserError("FullyShardedDataParallel hides the parameters; shard with fully_shard (FSDP2) instead")
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, WRAPPERS) or names & TIMM_AVERAGES:
            model = model.module
        else:
            return model


def check_bare(model: nn.Module, paths: Iterable[str]) -> None:
    """Refuse a model that is wrapped, or of which a part with one of the paths is.

    Raises:
        UserError: If so: the wrapper would not know the new parameters, or hold other copies of them.
    """
    if unwrap(model) is not model:
        raise UserError(f"the model is in a {type(model).__name__}; inject into the model in it, and wrap it then")
    for path in paths:
        if strip_wrappers(path) != path:
            raise UserError(f"target {path} is compiled or checkpointed by a wrapper; inject first, and wrap it then")


def strip_wrappers(name: str) -> str:
    """A dotted name without the parts that wrappers of inner modules add."""
    return ".".join(part for part in name.split(".") if part not in INNER)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters under the names that they have in the bare model."""
    return {strip_wrappers(name): parameter for name, parameter in unwrap(model).named_parameters()}


def swap(module: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the place of some below a module, at every path where it has them."""
    _swap(module, others, set())


def _swap(module: nn.Module, others: Mapping[nn.Module, nn.Module], seen: set[nn.Module]) -> None:
    seen.add(module)
    for name, child in list(module._modules.items()):
        if child in others:
            child = module._modules[name] = others[child]
        if child is not None and child not in seen:
            _swap(child, others, seen)


def timm_cfg(model: nn.Module) -> Mapping[str, Any]:
    """What timm records of a model's pretraining, a dict or an object; empty of any other model."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg if isinstance(cfg, Mapping) else vars(cfg)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only a part of a tensor: of a DTensor, or of what DeepSpeed's ZeRO-3 has partitioned."""
    return hasattr(tensor, "full_tensor") or is_partitioned(tensor)


def kind_if_no_floats(tensor: Tensor) -> str:
    """Empty for floating numbers that can train; else what the tensor is, such as torch.int8 or Int8Tensor."""
    if type(tensor) in PLAIN or is_sharded(tensor):
        return "" if tensor.is_floating_point() else str(tensor.dtype)
    return type(tensor).__name__


def is_partitioned(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has left nothing of a parameter here until its layer runs, or it is gathered."""
    return hasattr(tensor, "ds_id") and not tensor.numel()


def gather_full(tensor: Tensor) -> Tensor:
    """The values of a tensor; of a DTensor all of them, gathered from all processes, which must call it together."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def copy_whole(parameter: Tensor, values: Tensor) -> None:
    """Copy values of the whole shape into a parameter or buffer; into a DTensor this process's part of them."""
    if is_sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        values = values.to(parameter.device, parameter.dtype)
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    with torch.no_grad():
        parameter.copy_(values)
