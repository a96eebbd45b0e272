"""The masked copies of all tied weights of a model, made at once in each of its forward passes."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from capaboost_core.sharing.spread import spread

if TYPE_CHECKING:
    from capaboost_core.sharing.tied import TiedWeight

MOST = 1 << 22  # entries made at once: above it time is in the entries, and memory counts
_THREAD = threading.local()


class Together:
    """Hooks on a model between which its weights' copies are made together, the first time that one asks for its own.

    A copy is a small operator, and a GPU waits longer for a launch than it takes; of a model's layers together it is
    as many launches as of one. The copies live for one pass, so they are never out of date. Whatever runs outside a
    pass of the model, such as a part that is called alone or a block recomputed under gradient checkpointing, makes
    its own, with the same values.

    Args:
        model: Gets the hooks.
        weights: Its tied weights.
    """

    def __init__(self, model: nn.Module, weights: Iterable[TiedWeight]):
        distinct = dict.fromkeys(weights)  # layers may share one
        self.weights = [weight for weight in distinct if "packed" in weight._parameters]  # others read a pool
        self.handles = [
            model.register_forward_pre_hook(self.begin),
            model.register_forward_hook(self.end, always_call=True),
        ]

    def begin(self, *_) -> None:
        if _eager():
            _passes().append(_Pass(self))

    def end(self, *_) -> None:
        if _eager() and _passes() and _passes()[-1].together is self:
            _passes().pop()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class _Made(NamedTuple):
    packed: nn.Parameter
    version: int
    copies: Tensor


class _Pass:
    """A forward pass; one that was interrupted from the keyboard has no end, so copies are of a version."""

    def __init__(self, together: Together):
        self.together = together
        self.made: dict[tuple, dict[TiedWeight, _Made]] = {}

    def copies(self, weight: TiedWeight, dtype: torch.dtype) -> Tensor | None:
        """None if the weight's copies are not among those made, or its entries are others since."""
        key = dtype, torch.is_grad_enabled()  # a checkpointed block's first pass has no gradients
        if key not in self.made and weight in self.together.weights:
            self.made[key] = _made(self.together.weights, dtype)
        made = self.made.get(key, {}).get(weight)
        return made.copies if made and made.packed is weight.packed and made.version == _version(made.packed) else None


def copies(weight: TiedWeight, dtype: torch.dtype) -> Tensor:
    """The masked copies (..., d, r, width) of a weight, made with those of its model if that is in a forward pass."""
    if _eager():
        for one in reversed(_passes()):
            made = one.copies(weight, dtype)
            if made is not None:
                return made
    return spread([weight.bits], [weight.packed], weight.flags, dtype)[0]


def _eager() -> bool:
    """Compilers and exporters see each layer alone; the former fuse what it does."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def _passes() -> list[_Pass]:
    """Those that this thread is in, the innermost last."""
    if not hasattr(_THREAD, "passes"):
        _THREAD.passes = []
    return _THREAD.passes


def _made(weights: Iterable[TiedWeight], dtype: torch.dtype) -> dict[TiedWeight, _Made]:
    made = {}
    for group in _groups(weights):
        parts = spread([w.bits for w in group], [w.packed for w in group], group[0].flags, dtype)
        made |= {w: _Made(w.packed, _version(w.packed), part) for w, part in zip(group, parts, strict=True)}
    return made


def _version(packed: Tensor) -> int:
    return 0 if packed.is_inference() else packed._version  # inference mode counts none


def _groups(weights: Iterable[TiedWeight]) -> list[list[TiedWeight]]:
    """Weights that go together: of one shape, place and need of a gradient; not those held elsewhere now."""
    groups, sizes = defaultdict(lambda: [[]]), defaultdict(int)
    for weight in weights:
        packed, shape = weight.packed, weight.bits.shape[-2:]
        if weight.unmasked or hasattr(packed, "full_tensor") or not packed.numel():
            continue  # nothing to mask; or a part is here (FSDP2), or nothing (ZeRO), until its layer runs
        key = packed.device, packed.dtype, shape, weight.num_tied, packed.requires_grad
        sizes[key] += weight.bits.numel()
        if groups[key][-1] and sizes[key] > MOST:
            groups[key].append([])
            sizes[key] = weight.bits.numel()
        groups[key][-1].append(weight)
    return [group for several in groups.values() for group in several]
