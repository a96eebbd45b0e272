"""Models whose forward bypasses their layers: corrected, or refused before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch._subclasses import FakeTensor

from capaboost_core.errors import UserError
from capaboost_core.plan import in_prefix
from capaboost_core.wrappers import is_sharded

PLAIN = (nn.Parameter, torch.Tensor, FakeTensor)


def check_reached(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Refuse a target whose forward the model would not call, or whose weight is not an ordinary tensor.

    Raises:
        UserError: If the layer's parameters are quantized or of another class of tensors, or an
            `nn.MultiheadAttention` reads them itself.
    """
    parent = model.get_submodule(path.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise UserError(f"target {path}: nn.MultiheadAttention reads its weight past the layer; choose other targets")
    for name, parameter in layer.named_parameters():
        is_plain = type(parameter) in PLAIN or is_sharded(parameter)
        if not is_plain or not parameter.is_floating_point():
            found = parameter.dtype if is_plain else type(parameter).__name__
            raise UserError(
                f"target {path} has a {name} of {found}, which cannot carry an adapter; load the model unquantized, "
                "in float32 or bfloat16"
            )


def close_fast_paths(model: nn.Module, paths: Iterable[str]) -> None:
    """Have `nn.TransformerEncoderLayer` call its layers in evaluation too, where one of them is adapted.

    Its fast path hands their weights to one kernel. It is taken for the activations that this kernel knows, and
    `nn.TransformerEncoder` packs its input for that by what its first layer says.
    """
    paths = list(paths)
    for prefix, module in model.named_modules():
        if not any(not prefix or in_prefix(path, prefix) for path in paths):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False
