"""CUDA without a GPU: tensors that have a device, a type and a shape, and nothing in them."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
WAITS = {  # the host reads a value of the device, or a size that depends on values
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_dim",
    "aten::_unique2",
}
MOVES = {"aten::_to_copy", "aten::copy_"}


class OnDevice(TorchDispatchMode):
    """Refuses operators that make the host wait, and those whose tensors are not all on one GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        assert name not in WAITS, f"the host waits in {name}"
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        if name in MOVES:
            assert not (_on_gpu(args) and not _on_gpu(out)), "a tensor is copied to the host"
        else:
            # A number as a tensor of no dimension is an argument of the kernel.
            strays = {str(t.device) for t in tensors if t.device != CUDA and t.ndim}
            assert not (strays and _on_gpu(tensors)), f"{name} meets tensors on {strays}"
        return out


def _on_gpu(values: object) -> bool:
    return any(isinstance(t, Tensor) and t.device.type == "cuda" for t in tree_leaves(values))


@contextmanager
def fake_cuda():
    """Within the context `.to("cuda")` works and computes types and shapes, real tensors being let in.

    The device has no streams of random numbers.
    """
    streams, swap = (torch.cuda.get_rng_state, torch.cuda.set_rng_state), torch.utils.swap_tensors
    torch.cuda.get_rng_state, torch.cuda.set_rng_state = lambda device: None, lambda state, device: None
    torch.utils.swap_tensors = _take_over
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        torch.cuda.get_rng_state, torch.cuda.set_rng_state = streams
        torch.utils.swap_tensors = swap


def _take_over(tensor: Tensor, other: Tensor) -> None:
    """For `nn.Module.to`, which swaps fake parameters, and finds that what holds them forbids it."""
    tensor.data, tensor.fake_device = other.data, other.device


@contextmanager
def autocast(dtype: torch.dtype):
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
