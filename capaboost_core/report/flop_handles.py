"""What one operator of a traced forward pass costs: fvcore handles that count matrix products, and nothing else.

A handle gets the operator's inputs and outputs as values of the trace, and returns multiply-adds. fvcore's own
handles for norms, pooling and interpolation are left out, as element-wise work is named, not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

from fvcore.nn.jit_handles import conv_flop_jit, get_shape

Handle = Callable[[list[Any], list[Any]], int | Counter[str]]


def product(position: int) -> Handle:
    """Entries of the output times the reduced dimension, the last of the matrix at `position`; batches broadcast."""
    return lambda inputs, outputs: prod(get_shape(outputs[0])) * get_shape(inputs[position])[-1]


def attention(inputs: list[Any], outputs: list[Any]) -> int:
    """The products Q K^T and A V, whatever the mask: batch * heads * queries * keys * (size of q + size of v)."""
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
    """An operator that is no product, though fvcore would drop it: one occurrence under its full name."""
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
