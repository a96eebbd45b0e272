"""Count the operators of a model: a traced forward pass, and a backward pass as torch dispatches it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from capaboost_core.errors import UserError

with warnings.catch_warnings():
    # Raised by the import of fvcore, it would stand above the one line of a user's mistake, and in workers' logs.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_jit, get_shape


# What an operator costs: fvcore handles that count matmuls, and which other operators are negligible.
#
# A handle gets the operator's inputs and outputs as values of the trace, and returns multiply-adds. fvcore's own
# handles for norms, pooling and interpolation are left out, as element-wise work is named, not counted.


Handle = Callable[[list[Any], list[Any]], int | Counter[str]]


def shape_of(value: Any) -> list[int]:
    """The shape of a tensor of the trace."""
    shape = get_shape(value)
    assert shape is not None
    return shape


def product(position: int) -> Handle:
    """Entries of the output times the reduced dimension, the last of the matrix at `position`; batches broadcast."""
    return lambda inputs, outputs: prod(shape_of(outputs[0])) * shape_of(inputs[position])[-1]


def attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Q K^T and A V, masked positions included: batch * heads * queries * keys * (size of q + size of v)."""
    query, key, value = map(shape_of, inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def einsum(inputs: list[Any], outputs: list[Any]) -> int | Counter[str]:
    """Sizes of all letters multiplied, for two operands without an ellipsis; else named as not counted."""
    letters = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
    operands = list(inputs[1].node().inputs())
    if len(operands) != 2 or "." in "".join(letters):
        return named(inputs, outputs)
    sizes: dict[str, int] = {}
    for term, operand in zip(letters, operands, strict=True):
        sizes.update(zip(term, shape_of(operand), strict=True))
    return prod(sizes.values())


def named(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A non-matmul operator that fvcore would drop: one occurrence under its full name."""
    return Counter({outputs[0].node().kind(): 1})


def dropout(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Named in training; in evaluation it does nothing."""
    return named(inputs, outputs) if inputs[2].toIValue() else Counter()


HANDLES: dict[str, Any] = {  # None: the operator costs nothing
    **{f"aten::{name}": product(0) for name in ("linear", "matmul", "mm", "bmm", "mv", "dot", "inner")},
    **{f"aten::{name}": product(1) for name in ("addmm", "addmm_", "baddbmm", "baddbmm_", "addmv")},
    **{f"aten::{name}": named for name in ("relu", "relu_", "clamp", "clamp_", "max")},
    # Moves, which fvcore's own list of them lacks.
    **{f"aten::{name}": None for name in ("clone", "expand_as", "movedim", "mT", "numpy_T", "repeat", "unflatten")},
    "aten::_convolution": conv_flop_jit,
    "aten::dropout": dropout,
    "aten::einsum": einsum,
    "aten::scaled_dot_product_attention": attention,
}

# In addition to what torch tags as element-wise or as a reduction, without the underscore of in-place operators.
NEGLIGIBLE = {
    "batch_norm", "group_norm", "layer_norm", "rms_norm", "native_batch_norm_backward", "native_group_norm_backward",
    "native_layer_norm_backward", "_fused_rms_norm", "_fused_rms_norm_backward", "softmax", "log_softmax",
    "_softmax_backward_data", "_log_softmax_backward_data", "bernoulli", "dropout", "native_dropout_backward",
    "avg_pool2d", "avg_pool2d_backward", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "max_pool2d",
    "_adaptive_avg_pool2d_backward", "upsample_bicubic2d", "upsample_bilinear2d", "arange", "cat", "constant_pad_nd",
    "cumsum", "embedding", "embedding_dense_backward", "empty_like", "eye", "gather", "index", "index_add",
    "index_copy", "index_put", "index_select", "kron", "linalg_norm", "masked_fill", "meshgrid", "new_zeros", "pad",
    "randint", "roll", "scalar_tensor", "scatter", "scatter_add", "select_backward", "slice_backward", "stack",
    "_to_copy", "topk", "_unsafe_view",
}  # fmt: skip


def is_negligible(name: str) -> bool:
    """True for aten's element-wise operators, reductions, norms, softmax, pooling and copies: non-matmul operators."""
    space, _, operator = name.partition("::")
    packet = getattr(torch.ops.aten, operator, None)
    if space != "aten" or packet is None:
        return False
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
    return bool(tags & {torch.Tag.pointwise, torch.Tag.reduction}) or operator.removesuffix("_") in NEGLIGIBLE


Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


class Call(nn.Module):
    """A model and its inputs behind the interface of a trace: tensors in, a tuple of tensors out.

    Args:
        model: Any model.
        inputs: A tensor, a tuple of tensors, or a dict of keyword arguments.

    Raises:
        UserError: If the inputs are something else.
    """

    def __init__(self, model: nn.Module, inputs: Inputs):
        super().__init__()
        self.model = model
        self.names = tuple(inputs) if isinstance(inputs, Mapping) else None
        values = inputs.values() if isinstance(inputs, Mapping) else inputs
        self.inputs = (values,) if isinstance(values, Tensor) else tuple(values)
        for value in self.inputs:
            if not isinstance(value, Tensor):
                raise UserError(f"inputs has a {type(value).__name__}; give a tensor, a tuple or a dict of tensors")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.names is None:
            return tuple(_tensors(self.model(*inputs)))
        return tuple(_tensors(self.model(**dict(zip(self.names, inputs, strict=True)))))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def forward_operators(call: Call, known: Iterable[nn.Module] = ()) -> tuple[Counter[str], Counter[str]]:
    """Multiply-adds by operator of a forward pass, and occurrences of the operators that are not counted.

    An autograd function, which a trace cannot see into, is left out within the modules of `known`.
    """
    analysis = FlopCountAnalysis(call, call.inputs).clear_op_handles().set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad(), _MetaConvolutions() as convolutions:
        counts = analysis.by_operator() + convolutions.macs
    products = Counter({name: int(count) for name, count in counts.items() if "::" not in name})
    others = analysis.unsupported_ops() + Counter({n: count for n, count in counts.items() if "::" in n})
    names = {module: name for name, module in call.named_modules()}
    for module in known:
        inside = analysis.unsupported_ops(names[module])
        others -= Counter({name: count for name, count in inside.items() if name.startswith("prim::PythonOp")})
    return products, others


def half_of_torch(call: Call) -> int:
    """Half of what torch's own counter says of a forward pass, as it counts 2 a multiply-add."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(*call.inputs)
    return counter.get_total_flops() // 2


def forward_outputs(call: Call) -> list[Tensor]:
    """The outputs that have a gradient, of a pass in which an attention is two plain products."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        return [output for output in call(*call.inputs) if output.requires_grad]


def backward_operators(call: Call, outputs: list[Tensor]) -> tuple[int, Counter[str]]:
    """Multiply-adds from the outputs back to all trainable parameters, and occurrences of other operators but views.

    Raises:
        UserError: If no output depends on a trainable parameter.
    """
    trainable = [parameter for parameter in call.parameters() if parameter.requires_grad]
    if not outputs or not trainable:
        raise UserError("nothing in the model is trainable; leave backward out, or inject a method first")
    with _Dispatched() as dispatched:
        torch.autograd.grad(outputs, trainable, [output.detach() for output in outputs], allow_unused=True)
    return dispatched.macs, dispatched.others


def dispatched_products(model: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """Multiply-adds of a training step and of its forward pass, as dense kernels run them, in a third of the time of
    `count_flops` and within a percent of it, since no pass is traced for names.

    Raises:
        UserError: As `count_flops`.
    """
    call = Call(model, inputs)
    with torch.random.fork_rng({p.device for p in model.parameters() if p.device.type == "cuda"}):
        with _Dispatched() as dispatched:
            outputs = forward_outputs(call)
        backward, _ = backward_operators(call, outputs)
    return dispatched.macs + backward, dispatched.macs


@contextmanager
def untraced() -> Iterator[None]:
    """Within the context, a running trace records nothing, and sizes are plain numbers."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # pyright: ignore[reportAttributeAccessIssue]  not in torch's stubs
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # pyright: ignore[reportAttributeAccessIssue]  not in torch's stubs


class _MetaConvolutions(TorchFunctionMode):
    """Counts convolutions on the meta device, where their kernel is Python code, which a trace breaks."""

    def __init__(self):
        super().__init__()
        self.macs: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in (torch.conv1d, torch.conv2d, torch.conv3d) or not args[0].is_meta:
            return func(*args, **(kwargs or {}))
        with untraced():
            shape = tuple(func(*args, **(kwargs or {})).shape)
            self.macs["conv"] += prod(shape) * args[1][0].numel()
        return args[0].new_empty(shape)


class _Dispatched(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.macs, self.others = 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").rstrip("_")  # addmm_ is addmm in place
        formula = flop_registry.get(getattr(torch.ops.aten, name, None))
        if name == "convolution_backward":
            self.macs += _convolution_backward(*args)
        elif formula is not None:
            self.macs += formula(*args, **(kwargs or {}), out_val=output) // 2  # two a multiply-add in torch
        elif not func.is_view:
            self.others[func._schema.name] += 1
        return output


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *settings: Any) -> int:
    """The forward products for each wanted gradient; torch's formula overlooks the groups."""
    transposed, wanted = settings[4], settings[7]
    return (x if transposed else grad).numel() * weight[0].numel() * sum(wanted[:2])
