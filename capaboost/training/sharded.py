"""Sharding of model and optimizer over processes (FSDP2), and the complete values that evaluation and files need.

What a checkpoint, an adapter and a result hold is what data parallelism writes: complete tensors under the same names.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from capaboost_core.errors import UserError, reason_of
from capaboost_core.methods import Method
from capaboost_core.modes import merged
from capaboost_core.wrappers import copy_full, gather_full, is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

# Of a method: they compute with the parameters of the whole model, of which a process holds a part between its steps.
WHOLE_MODEL_HOOKS = ("objective", "penalty", "after_step", "state", "load_state")


def is_asked() -> bool:
    """Whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")


def check_asked(precision: str) -> None:
    """Refuse forms of FSDP that training does not run under, before accelerate starts.

    Raises:
        UserError: If the launcher asks for FSDP's first version or parameters on the host, or the precision is fp16.
    """
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP's first version hides the parameters; pass --fsdp_version 2, or fsdp_version: 2 in a file"
        )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() in ("true", "1"):
        raise UserError("parameters offloaded to the host are not trained; set fsdp_offload_params to false")
    if precision == "fp16":
        raise UserError("fp16 is not trained under FSDP2; pass --mixed-precision bf16 or no")


def take_up(accelerator: Accelerator) -> None:
    """Make accelerate shard with FSDP2 as asked, on CPUs too, where it takes data parallelism without a word.

    Weights stay float32 and products are under autocast, as without sharding. Each process has loaded all weights, so
    none is sent to the others at the start.

    Raises:
        UserError: If the processes compute on CPUs of a machine whose GPU torch would shard on.
    """
    from accelerate import FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType

    if accelerator.device.type == "cpu" and torch.accelerator.is_available():
        raise UserError("FSDP2 takes this machine's GPU; to train on its CPUs, set CUDA_VISIBLE_DEVICES= (empty)")
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    plugin.cpu_ram_efficient_loading, plugin.mixed_precision_policy = False, None
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, method: Method | None) -> Any:
    """The sharded model and its optimizer.

    Raises:
        UserError: If the method computes with the whole model between steps, or its parameters cannot be sharded.
    """
    hooks = [name for name in WHOLE_MODEL_HOOKS if method and getattr(type(method), name) is not getattr(Method, name)]
    if method and hooks:
        raise UserError(f"{method.label} needs the whole model in its {hooks[0]}; train it without FSDP2")
    try:
        return accelerator.prepare(model, optimizer)
    except (ValueError, KeyError) as error:  # a scalar parameter, or a class to wrap that the model does not have
        raise UserError(
            f"FSDP2 cannot shard this model: {reason_of(error)}; set fsdp_transformer_layer_cls_to_wrap to the "
            "class of its blocks, or train it without FSDP2"
        ) from error


def complete(values: Any) -> Any:
    """Nested values with all of each tensor, on the same device; every process must call it together."""
    if isinstance(values, Tensor):
        return gather_full(values)
    if isinstance(values, Mapping):
        return {name: complete(value) for name, value in values.items()}
    return [complete(value) for value in values] if isinstance(values, list) else values


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's complete state; a sharded parameter takes its part of each tensor of its own shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(map(is_sharded, parameters)):
        return optimizer.load_state_dict(dict(state))
    parts = {
        i: {key: _like(parameters[i], value) for key, value in of_parameter.items()}
        for i, of_parameter in state["state"].items()
    }
    optimizer.load_state_dict(dict(state) | {"state": parts})


def _like(parameter: Tensor, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value  # such as the count of steps
    part = torch.empty_like(parameter.detach())
    copy_full(part, value)
    return part


@contextlib.contextmanager
def evaluating(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Within it the model is merged where it can be, and each process holds all weights.

    So processes may evaluate unequal numbers of batches.
    """
    if not accelerator.is_fsdp2:
        with merged(model):
            yield
        return
    plugin = accelerator.state.fsdp_plugin
    with _unsharded(model, bool(plugin and plugin.reshard_after_forward)), merged(model), accelerator.autocast():
        yield


@contextlib.contextmanager
def _unsharded(model: nn.Module, reshard_after_forward: bool) -> Iterator[None]:
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(reshard_after_forward and unit is not model, recurse=False)
