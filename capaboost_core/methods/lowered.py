"""An input in the precision of autocast, once for all layers that read it, as query and value do.

Autocast keeps lowered weights for reuse but no lowered inputs, so each layer would hold a copy of its own until the
backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

# The last input, its version and its lowered copy, both weakly: a copy lives as long as autograd holds it. One tuple,
# so that threads see all of it or none.
_last: tuple[TensorWeakRef, int, TensorWeakRef] | None = None


def lowered(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a precision, as values without a gradient of their own; the copy of the call before, if it was of this x
    and is still held.
    """
    global _last
    if x.dtype == dtype:
        return x
    if torch.compiler.is_compiling() or x.is_inference():  # compilers do it by themselves; no version to compare
        return x.to(dtype)
    if _last is not None:
        of, version, kept = _last
        copy = kept()
        if of() is x and version == x._version and copy is not None and copy.dtype == dtype:
            return copy
    copy = x.to(dtype)
    _last = TensorWeakRef(x), x._version, TensorWeakRef(copy)
    return copy
