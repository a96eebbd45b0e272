"""See through what wraps a model or its tensors: compilation, parallelism, averages, sharding and quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from capaboost_core.errors import UserError

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
# timm's wrappers with the name of the model in them, by name: the core does not import timm.
TIMM_WRAPPERS = {"ModelEmaV2": "module", "ModelEmaV3": "module", "FeatureGetterNet": "model"}
ORDINARY_TENSORS = (nn.Parameter, Tensor, FakeTensor)
WRAPPER_PARTS = {"_orig_mod", "_checkpoint_wrapped_module"}  # added to names by torch.compile and by checkpointing


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, (Distributed)DataParallel, AveragedModel, and of timm ModelEmaV2, ModelEmaV3 and
    the getter of features that `features_only=True` makes.

    Raises:
        UserError: If the wrapper is FSDP's first version, which keeps flat parameters without names.
    """
    while True:
        names = {cls.__name__ for cls in type(model).__mro__}
        if "FullyShardedDataParallel" in names:
            raise UserError("FullyShardedDataParallel hides the parameters; shard with fully_shard (FSDP2) instead")
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, WRAPPERS):
            model = model.get_submodule("module")
        elif inner := names & TIMM_WRAPPERS.keys():
            model = model.get_submodule(TIMM_WRAPPERS[inner.pop()])
        else:
            return model


def check_bare(model: nn.Module, paths: Iterable[str]) -> None:
    """Refuse a model that is wrapped, or in which a module at one of the paths is.

    Raises:
        UserError: If so, as the wrapper would not know the new parameters, or would hold other copies of them.
    """
    if unwrap(model) is not model:
        raise UserError(f"the model is in a {type(model).__name__}; inject into the model in it, and wrap it then")
    for path in paths:
        if strip_wrappers(path) != path:
            raise UserError(f"target {path} is compiled or checkpointed by a wrapper; inject first, and wrap it then")


def strip_wrappers(name: str) -> str:
    """A dotted name without the parts that wrappers of inner modules add to it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters under the names that they have in the bare model."""
    return {strip_wrappers(name): parameter for name, parameter in unwrap(model).named_parameters()}


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules under the paths that they have in the bare model; a shared one under its first path."""
    return {strip_wrappers(path): module for path, module in unwrap(model).named_modules()}


def swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules of a model by others, at every path where it holds them, also within the replacements."""
    waiting, seen = [model], {model}
    for module in waiting:
        for name, child in list(module._modules.items()):
            if child is not None and child in replacements:
                child = module._modules[name] = replacements[child]
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)


def timm_cfg(model: nn.Module) -> Mapping[str, Any]:
    """timm's record of a model's pretraining; empty for any other model."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg if isinstance(cfg, Mapping) else vars(cfg)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only a part of a tensor: a DTensor, or one that DeepSpeed's ZeRO-3 has partitioned."""
    return hasattr(tensor, "full_tensor") or is_partitioned(tensor)


def kind_if_no_floats(tensor: Tensor) -> str:
    """The dtype or class of a tensor that cannot train, such as torch.int8 or Int8Tensor; else an empty text."""
    if type(tensor) in ORDINARY_TENSORS or is_sharded(tensor):
        return "" if tensor.is_floating_point() else str(tensor.dtype)
    return type(tensor).__name__


def is_partitioned(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has taken a parameter's values away until its layer runs or they are gathered."""
    return hasattr(tensor, "ds_id") and not tensor.numel()


def gather_full(tensor: Tensor) -> Tensor:
    """The complete values of a tensor; all processes must gather those of a DTensor together."""
    tensor = tensor.detach()
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def copy_full(parameter: Tensor, values: Tensor) -> None:
    """Copy complete values into a parameter or buffer; a DTensor takes this process's part of them."""
    if is_sharded(parameter):
        from torch.distributed.tensor import DTensor, distribute_tensor  # imports much that one process does not need

        assert isinstance(parameter, DTensor)
        values = values.to(parameter.device, parameter.dtype)
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    with torch.no_grad():
        parameter.copy_(values)
