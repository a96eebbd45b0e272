"""What an operator costs: fvcore handles that count matmuls, and which other operators are negligible.

A handle gets the operator's inputs and outputs as values of the trace, and returns multiply-adds. fvcore's own
handles for norms, pooling and interpolation are left out, as element-wise work is named, not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch

from capaboost_core.report.fvcore_names import conv_flop_jit, get_shape

Handle = Callable[[list[Any], list[Any]], int | Counter[str]]


def product(position: int) -> Handle:
    """Entries of the output times the reduced dimension, the last of the matrix at `position`; batches broadcast."""
    return lambda inputs, outputs: prod(get_shape(outputs[0])) * get_shape(inputs[position])[-1]


def attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Q K^T and A V, masked positions included: batch * heads * queries * keys * (size of q + size of v)."""
    query, key, value = map(get_shape, inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def einsum(inputs: list[Any], outputs: list[Any]) -> int | Counter[str]:
    """Sizes of all letters multiplied, for two operands without an ellipsis; else named as not counted."""
    letters = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
    operands = list(inputs[1].node().inputs())
    if len(operands) != 2 or "." in "".join(letters):
        return named(inputs, outputs)
    sizes: dict[str, int] = {}
    for term, operand in zip(letters, operands, strict=True):
        sizes.update(zip(term, get_shape(operand), strict=True))
    return prod(sizes.values())


def named(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A non-matmul operator that fvcore would drop: one occurrence under its full name."""
    return Counter({outputs[0].node().kind(): 1})


def dropout(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Named in training; in evaluation it does nothing."""
    return named(inputs, outputs) if inputs[2].toIValue() else Counter()


HANDLES: dict[str, Handle | None] = {
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
