"""What a step on a GPU must not do."""

from __future__ import annotations

import torch
from torch import Tensor
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
