"""CUDA without a GPU: a training step on tensors that have a device, a type and a shape, and nothing in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

Node = torch.autograd.graph.Node


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within the context `.to("cuda")` works and computes types and shapes, real tensors being let in.

    The device has no streams of random numbers, and attention is the flash kernel: torch would look for the
    capability of the GPU.
    """
    with (
        patch("torch.cuda.get_rng_state", lambda device: None),
        patch("torch.cuda.set_rng_state", lambda state, device: None),
        patch("torch.nn.functional.scaled_dot_product_attention", _attention),
        patch("torch.utils.swap_tensors", _take_over),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


def _take_over(tensor: Tensor, other: Tensor) -> None:
    """For `nn.Module.to`, which swaps fake parameters, and finds that what holds them forbids it."""
    tensor.data = other.data
    tensor.fake_device = other.device  # pyright: ignore[reportAttributeAccessIssue]  FakeTensor's own attribute


_of_torch = F.scaled_dot_product_attention


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, **more) -> Tensor:
    if attn_mask is not None or set(more) - {"scale"} or q.dtype == torch.float32:
        return _of_torch(q, k, v, attn_mask, dropout_p, is_causal, **more)
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, **more)[0]


@contextmanager
def autocast(dtype: torch.dtype) -> Iterator[None]:
    """`torch.autocast("cuda", dtype)`, which turns itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """`loss.backward()` node by node, with the operators that the engine of autograd would run.

    The engine itself wants a real GPU. Gradients are set, not added to those that are there.
    """
    root: Any = loss.grad_fn
    arrived: defaultdict[Any, dict[int, Tensor]] = defaultdict(dict)
    arrived[root][0] = torch.ones_like(loss)
    missing, ready = _edges_into(root), [root]
    while ready:
        node = ready.pop()
        gradients = arrived.pop(node, {})
        if hasattr(node, "variable"):
            node.variable.grad = gradients[0]
            continue
        for (after, index), gradient in _passed_on(node, gradients):
            if gradient is not None:
                gradient = _as_engine(gradient, after._input_metadata[index])
                held = arrived[after]
                held[index] = held[index] + gradient if index in held else gradient
            missing[after] -= 1
            if not missing[after]:
                ready.append(after)


def _edges_into(root: Node) -> Counter[Node]:
    """How many gradients each node of the graph waits for."""
    counts, seen, open_nodes = Counter(), {root}, [root]
    while open_nodes:
        for after, _ in open_nodes.pop().next_functions:
            if after is not None:
                counts[after] += 1
                if after not in seen:
                    seen.add(after)
                    open_nodes.append(after)
    return counts


def _passed_on(node: Any, gradients: dict[int, Tensor]) -> Iterator[tuple[tuple[Any, int], Tensor | None]]:
    """The edges of a node with the gradients that it makes."""
    given = [gradients.get(index) for index in range(len(node._input_metadata))]
    if not gradients:
        made = [None] * len(node.next_functions)
    elif isinstance(node, torch.autograd.function.BackwardCFunction):
        made = node.apply(*given)
        made = made if isinstance(made, tuple) else (made,)
        made = iter([gradient for gradient, needed in zip(made, node.needs_input_grad, strict=True) if needed])
        made = [None if after is None else next(made) for after, _ in node.next_functions]
    else:
        made = node(*given)
        made = made if isinstance(made, tuple) else (made,)
    for edge, gradient in zip(node.next_functions, made, strict=True):
        if edge[0] is not None:
            yield edge, gradient


def _as_engine(gradient: Tensor, expected) -> Tensor:
    """In the shape and type of what it is the gradient of."""
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    return gradient.to(expected.dtype)
