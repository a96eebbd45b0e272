"""Models whose forward bypasses their layers: corrected, or refused before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from capaboost_core.adapted import own_forward
from capaboost_core.errors import UserError
from capaboost_core.plan import in_prefix
from capaboost_core.wrappers import kind_if_no_floats


def check_reached(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Refuse a target whose forward the model would not call, or whose weight is not an ordinary tensor.

    Raises:
        UserError: If the layer's parameters are quantized or of another class of tensors, an `nn.MultiheadAttention`
            reads them itself, or the layer computes with something else than its class's forward.
    """
    _check_forward(path, layer)
    parent = model.get_submodule(path.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise UserError(f"target {path}: nn.MultiheadAttention reads its weight past the layer; choose other targets")
    for name, parameter in layer.named_parameters():
        if kind := kind_if_no_floats(parameter):
            raise UserError(
                f"target {path} has a {name} of {kind}, which cannot carry an adapter; load the model unquantized, "
                "in float32 or bfloat16"
            )


def _check_forward(path: str, layer: nn.Module) -> None:
    """Refuse a layer that runs another forward than its class's; a hook of accelerate is taken over.

    Raises:
        UserError: If so.
    """
    if vars(layer).get("_compiled_call_impl") is not None:
        raise UserError(f"target {path} is compiled by itself, without an adapter; inject first, and compile then")
    if "_hf_hook" in vars(layer) and any(parameter.is_meta for parameter in layer.parameters()):
        raise UserError(
            f"target {path} is offloaded by accelerate, so that it has no weight between its calls; load the model "
            "with a device_map without cpu and disk offload"
        )
    if (forward := own_forward(layer)) is not None:
        kind = getattr(forward, "__qualname__", type(forward).__name__)
        raise UserError(
            f"target {path} has a forward of its own on the instance ({kind}), which an adapter would miss; inject "
            "first, and replace the forward then"
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
