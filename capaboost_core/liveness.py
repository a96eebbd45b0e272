"""Checks that additions have an effect, since some models read a layer's weight and never call the layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, own_forward
from capaboost_core.plan import in_prefix
from capaboost_core.sharing.tied import transformed
from capaboost_core.wrappers import kind_if_no_floats, strip_wrappers, timm_cfg, unwrap

# Buffers that a forward pass in train mode moves, such as a BatchNorm's running statistics.
#
# A frozen module with such buffers stays in eval mode, so that the base model does not change. Those of a module that
# trains change, and are saved with the adapter.


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


PASSES = 8  # after which a layer that some batches leave out, as an expert or a dropped layer, should have run
OUR_FUNCTIONS = ("_LowRankLinearBackward", "_ScatterCopiesBackward")  # custom functions that hide no part of a graph


class NoEffectWarning(UserWarning):
    """Additions take no part in what the model computes."""


def check_reached(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Refuse a target whose forward the model would not call, or whose weight is not an ordinary tensor.

    Raises:
        UserError: If the layer's parameters are quantized or of another tensor class, an `nn.MultiheadAttention`
            reads them itself, or the instance has another forward than its class.
    """
    _check_forward(path, layer)
    parent = model.get_submodule(path.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise UserError(
            f"target {path}: nn.MultiheadAttention reads its weight without calling it; choose other targets"
        )
    for name, parameter in layer.named_parameters():
        if kind := kind_if_no_floats(parameter):
            raise UserError(
                f"target {path} has a {name} of {kind}, which cannot carry an adapter; load the model unquantized, "
                "in float32 or bfloat16"
            )


def _check_forward(path: str, layer: nn.Module) -> None:
    """Refuse a layer that is compiled, offloaded, or has a forward on the instance other than accelerate's."""
    if vars(layer).get("_compiled_call_impl") is not None:
        raise UserError(f"target {path} was compiled without an adapter; inject first, and compile then")
    if "_hf_hook" in vars(layer) and any(parameter.is_meta for parameter in layer.parameters()):
        raise UserError(
            f"target {path} is offloaded by accelerate, so that it has no weight between its calls; load the model "
            "with a device_map without cpu and disk offload"
        )
    if (forward := own_forward(layer)) is not None:
        kind = getattr(forward, "__qualname__", type(forward).__name__)
        raise UserError(
            f"target {path} has a forward on the instance ({kind}), which an adapter would not call; inject "
            "first, and replace the forward then"
        )


def close_fast_paths(model: nn.Module, paths: Iterable[str]) -> None:
    """Make each `nn.TransformerEncoderLayer` with an adapted layer call its layers in evaluation too.

    Its fast path gives their weights to one kernel, for the activations that this kernel supports; then
    `nn.TransformerEncoder` also packs its input. Both are switched off by the attributes that they check.
    """
    paths = list(paths)
    for prefix, module in model.named_modules():
        if not any(not prefix or in_prefix(path, prefix) for path in paths):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False


def check_alive(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Run a model once, without dropout, and refuse it if an addition takes no part in its outputs.

    Args:
        model: An adapted model.
        *args: Inputs of the model.
        **kwargs: Inputs of the model by name.

    Raises:
        UserError: If there is such a layer.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with _evaluating(model), torch.enable_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        refuse_dead(model, model(*args, **kwargs))


def refuse_dead(model: nn.Module, outputs: Any) -> None:
    """Refuse a model in which an adapted layer's addition takes no part in the given outputs.

    Raises:
        UserError: If there is such a layer.
    """
    if dead := dead_layers(unwrap(model), outputs):
        raise UserError(_message(model, dead))


def dead_layers(model: nn.Module, outputs: Any) -> list[str]:
    """Paths of the adapted layers of which no trained parameter is in the graph of the outputs.

    Disabled and merged layers are left out. The list is empty if the graph cannot be followed: without floating
    outputs, or with functions that may hide a part of it, such as reentrant checkpointing. A parameter that layers
    share counts for each of them.

    Args:
        model: An adapted model, bare.
        outputs: Tensors, in mappings, sequences or dataclasses.
    """
    layers = working_layers(model)
    trained = {layer.path: [p for p in layer.own_parameters().values() if p.requires_grad] for layer in layers}
    wanted = {id(parameter) for parameters in trained.values() for parameter in parameters}
    reached = _reached([tensor for tensor in _tensors(outputs) if tensor.is_floating_point()], wanted)
    if reached is None:
        return []
    return [path for path, own in trained.items() if own and not any(id(p) in reached for p in own)]


def check_alive_by_example(model: nn.Module) -> None:
    """`check_alive` with example inputs of a model of transformers or timm; other models pass unchecked.

    Raises:
        UserError: If the addition of an adapted layer has no effect.
    """
    if (example := _example_inputs(model)) is None:
        return
    try:
        check_alive(model, *example[0], **example[1])
    except UserError:
        raise
    except Exception:  # any model may refuse these inputs, in any way; `Watch` then checks it in training
        return


def _example_inputs(model: nn.Module) -> tuple[tuple, dict[str, Any]] | None:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None or parameter.is_meta:
        return None
    size = getattr(getattr(model, "config", None), "image_size", None)
    if getattr(model, "main_input_name", None) == "pixel_values" and isinstance(size, int):
        return (parameter.new_zeros(1, getattr(model.config, "num_channels", 3), size, size),), {}
    if isinstance(inputs := getattr(model, "dummy_inputs", None), Mapping):
        return (), {name: value[:1].to(parameter.device) for name, value in inputs.items()}
    if channels_and_sides := timm_cfg(model).get("input_size"):
        sides = getattr(getattr(model, "patch_embed", None), "img_size", None) or channels_and_sides[1:]
        return (parameter.new_zeros(1, channels_and_sides[0], *sides),), {}
    return None


class Watch:
    """A hook on a model that warns once of additions without an effect, in its first passes that build a graph.

    It removes itself as soon as every addition has had an effect. It warns in the first pass if none has, else after
    `PASSES`, as a model may choose at random which layers it runs.
    """

    def __init__(self, model: nn.Module):
        self.passes = 0
        self.unseen: set[str] | None = None
        self.handle = model.register_forward_hook(self.look)

    def look(self, model: nn.Module, _: Any, outputs: Any) -> None:
        compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] (it is documented)
        if compiled or not torch.is_grad_enabled() or transformed() or not working_layers(model):
            return
        dead, adapted = dead_layers(model, outputs), len(working_layers(model))
        self.unseen = set(dead) if self.unseen is None else self.unseen & set(dead)
        self.passes += 1
        if self.unseen and (len(dead) == adapted or self.passes == PASSES):
            warnings.warn(_message(model, sorted(self.unseen)), NoEffectWarning, stacklevel=2)
            self.remove()
        elif not self.unseen:
            self.remove()

    def remove(self) -> None:
        self.handle.remove()


def working_layers(model: nn.Module) -> list[Adapted]:
    """The adapted layers that are neither disabled nor merged now, so that their additions are computed."""
    layers = (module for module in model.modules() if isinstance(module, Adapted))
    return [layer for layer in layers if layer.enabled and not getattr(layer, "merged", False)]


def _message(model: nn.Module, dead: list[str]) -> str:
    number = f"{len(dead)} adapted layers" if len(dead) > 1 else "an adapted layer"
    return (
        f"{type(model).__name__} bypasses {number}, such as {dead[0]}, whose additions have no effect on its "
        "outputs and will not train; choose other targets, or inject by capaboost_vision or capaboost_text"
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each module back into its mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (Mapping, list, tuple)) or hasattr(values, "__dataclass_fields__"):
        parts = values.values() if isinstance(values, Mapping) else values
        for part in vars(values).values() if hasattr(values, "__dataclass_fields__") else parts:
            yield from _tensors(part)


def _reached(outputs: list[Tensor], wanted: set[int]) -> set[int] | None:
    """The ids of the wanted leaves that the graph of the outputs contains; None if it may hide some of the others."""
    todo = [(tensor.grad_fn, tensor.output_nr) for tensor in outputs if tensor.grad_fn is not None]
    found: set[int] = set()
    seen: set[tuple[Node, int]] = set()
    hidden = not outputs
    while todo and not wanted <= found:
        node, output = todo.pop()
        of_many = node.name() == "_ScatterCopiesBackward"
        if (node, output if of_many else 0) in seen:
            continue
        seen.add((node, output if of_many else 0))
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        hidden = hidden or (isinstance(node, BackwardCFunction) and node.name() not in OUR_FUNCTIONS)
        todo += [(after, number) for after, number in _edges(node, output, of_many) if after is not None]
    return None if hidden and not wanted <= found else found


def _edges(node: Node, output: int, of_many: bool) -> tuple[tuple[Node | None, int], ...]:
    """The edges of a node; if it makes the copies of many weights, only the one to the weight of this output.

    The inputs of such a node are the flags, the bits of each weight, and then the entries of each weight.
    """
    edges = node.next_functions
    return (edges[len(edges) // 2 + 1 + output],) if of_many else edges
