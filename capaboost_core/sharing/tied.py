"""One weight that d modules share: a parameter of exactly the kept entries, seen as d masked copies."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

from capaboost_core.sharing.masks import MaskSettings

# Modules whose parameters get their initial values late, or belong to another module.


# pyright: reportUnknownMemberType=false
# torch annotates nn.Module._apply only in part.


class ResetOnMaterialize(nn.Module):
    """A module whose own parameters are filled by `reset_parameters`, also when they leave the meta device."""

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        was_meta = self._is_meta()
        super()._apply(fn, recurse)
        if was_meta and not self._is_meta():
            self.reset_parameters()
        return self

    def _is_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.parameters(recurse=False))


class SharedParameters(nn.Module):
    """A module that reads some parameters of another one, which alone registers, moves and saves them.

    One parameter that two modules register becomes two when a model leaves the meta device, and training would go on
    without a word; this stays one.
    """

    def attach_shared(self, owner: nn.Module, *names: str) -> None:
        """Drop own parameters, and read the owner's from now on; attached to itself, a module stays as it is."""
        if owner is self:
            return
        for name in names:
            delattr(self, name)
        owners = vars(self).setdefault("owners", {})
        owners |= dict.fromkeys(names, (owner,))  # in a tuple, since nn.Module would register it as a child

    def __getattr__(self, name: str) -> Any:
        owners: dict[str, tuple[nn.Module]] = vars(self).get("owners", {})
        return getattr(owners[name][0], name) if name in owners else super().__getattr__(name)


# pyright: reportUnknownMemberType=false
# torch annotates from_numpy and the methods of nn.Module that are overridden here only in part.


LARGEST_GROUP = 1 << 22  # entries whose copies are made at once: above it time is in the entries, and memory counts


class TiedWeight(ResetOnMaterialize):
    """A weight w of shape (..., r, width) that d modules share, module i seeing w * m_i (Eq. 3).

    The parameter `packed` holds, in row-major order, just the entries that some mask keeps, so it has
    (1 - (1 - density)^d) * numel entries in expectation, 0.75 * numel at d = 2 and density 0.5. An entry
    that no mask keeps exists nowhere: not in the gradient, the optimizer or the file. It is a column
    (kept, 1), so that optimizers which spare vectors from weight decay take it for the matrix that it is.

    Worked example, d = 2: w = [[a, b, c, d]], m_1 = 1100, m_2 = 0101; packed = [[a], [b], [d]], and
    `copies()` is [[[a, b, 0, 0]], [[0, b, 0, d]]] of shape (2, 1, 4).

    Masks are not in the state dict. A weight made on the meta device gets its masks, and fresh initial
    values, as soon as `to_empty` or a state dict gives it memory.

    Args:
        config: Gives num_tied and the kind of mask.
        masks: All d masks as `mask_bits` gives them, (..., r, width). The rank comes first, so that the copies of
            B and of up projections lie in memory like those of A: theirs are given transposed.
        initial: Dense initial values of the same shape; the kept ones become the parameter.
        initialise: Fills `packed` in place as `initial` was filled, entry by entry; zeros if left out.

    Attributes:
        packed: The trained entries, (kept, 1).
        bits: The masks, (..., r, width): bit i of an entry says that copy i keeps it.
        flags: The bit of each copy, (d, 1, 1).
        off_device: The masks on the CPU while the parameter is on the meta device, which would lose them.
        unmasked: Whether every copy keeps every entry.
        dropped: Probability that an entry is dropped at a training step, with masks that are redrawn then.
    """

    packed: nn.Parameter
    bits: Tensor
    flags: Tensor

    def __init__(
        self,
        config: MaskSettings,
        masks: NDArray[np.uint8],
        initial: Tensor,
        initialise: Callable[[Tensor], Any] = nn.init.zeros_,
    ):
        super().__init__()
        kept = torch.from_numpy(np.flatnonzero(masks)).to(initial.device)
        self.num_tied, self.initialise = config.num_tied, initialise
        self.dropped = 1 - config.density if config.mask == "dropout" else 0.0
        self.ones = int(np.unpackbits(masks).sum())  # of all masks
        self.unmasked = self.ones == config.num_tied * masks.size
        self.packed = nn.Parameter(initial.flatten()[kept].unsqueeze(1))
        flags = 1 << np.arange(config.num_tied, dtype=np.uint8).reshape(-1, 1, 1)
        self.register_buffer("bits", torch.from_numpy(np.ascontiguousarray(masks)), persistent=False)
        self.register_buffer("flags", torch.from_numpy(flags), persistent=False)
        self._place_masks({"bits": self.bits, "flags": self.flags})

    @property
    def held(self) -> nn.Parameter:
        """A parameter that the module registers, which says where it is."""
        return self.packed

    @property
    def trains(self) -> bool:
        return self.packed.requires_grad

    @property
    def executed(self) -> int:
        """Multiply-adds of a row with all copies, as dense kernels do them."""
        return self.num_tied * self.bits.numel()

    @property
    def kept(self) -> int:
        """The ones of all masks; of masks that are redrawn in training their mean, which evaluation has densely."""
        return round((1 - self.dropped if self.training else 1.0) * self.ones)

    def copies(self, training: bool | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The d masked views of the weight, (..., d, r, width).

        Args:
            training: Whether masks that are redrawn in training are redrawn; by default as the module is.
            dtype: By default that of the parameter.
        """
        dtype = dtype or self.packed.dtype
        if not self.unmasked:
            return _cached_copies(self, dtype)
        dense = self.packed.to(dtype).view(self.bits.shape).unsqueeze(-3)
        dense = dense.expand(*dense.shape[:-3], self.num_tied, -1, -1)
        return self._redrawn(dense, self.training if training is None else training) if self.dropped else dense

    def _redrawn(self, dense: Tensor, training: bool) -> Tensor:
        """Fresh masks at each training step (the paper's dropout ablation); their mean in evaluation."""
        if training:
            return dense * (torch.rand(dense.shape, device=dense.device) >= self.dropped).to(dense.dtype)
        return dense * (1 - self.dropped)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.initialise(self.packed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Masks keep their values over every move: `to_empty` and the meta device would lose them."""
        masks = self.off_device or {"bits": self.bits, "flags": self.flags}
        super()._apply(fn, recurse)
        self._place_masks(masks)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Accept the vector of older files too, and have masks where `assign=True` leaves the meta device."""
        if f"{prefix}packed" in state_dict:
            state_dict[f"{prefix}packed"] = column(state_dict[f"{prefix}packed"])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._place_masks(self.off_device or {})

    def _place_masks(self, masks: dict[str, Tensor]) -> None:
        """Put the masks where the parameter is."""
        for name, mask in masks.items():
            setattr(self, name, mask.to(self.held.device))
        self.off_device = {name: mask.cpu() for name, mask in masks.items()} if self.held.is_meta else None

    def extra_repr(self) -> str:
        shape = tuple(self.bits.shape)
        return f"shape={shape}, num_tied={self.num_tied}, kept={self.packed.numel()}/{self.bits.numel()}"


def column(packed: Tensor) -> Tensor:
    """The packed entries as (kept, 1); files of version 0.1.0 hold a vector."""
    return packed.unsqueeze(1) if packed.ndim == 1 else packed


class TyingSettings(MaskSettings):
    """Settings of a method whose weights are shared by d modules; list it before `Method` among the bases."""

    @property
    def is_plain(self) -> bool:
        """Whether there is one module without a mask. (With several, density 1 is the end of a scale.)"""
        return self.num_tied == 1 and self.density == 1

    def make_weight(
        self,
        name: str,
        masks: Callable[[], NDArray[np.uint8]],
        initial: Tensor,
        initialise: Callable[[Tensor], Any],
        parts: Sequence[int] = (),
    ) -> nn.Module:
        """A weight that d modules share: `TiedWeight`, or what has its `copies`, `executed`, `kept` and `trains`.

        Args:
            name: Of the weight in its layer.
            masks: Gives the masks, as `TiedWeight` takes them.
            initial: Dense initial values.
            initialise: Fills values anew.
            parts: Widths of the parts along the last dimension that belong to slices of an output.
        """
        return TiedWeight(self, masks(), initial, initialise)


# From packed entries to masked copies, for one tied weight or for many at once.


def scatter_copies(
    bits: Sequence[Tensor], packed: Sequence[Tensor], flags: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The copies (..., d, r, width) of each weight, in a precision; the number of operators is that of one weight.

    Args:
        bits: The masks of each weight, (..., r, width), with the same r and width in all.
        packed: The kept entries of each, (kept, 1), of one type.
        flags: The bit of each copy, (d, 1, 1).
        dtype: Of the copies. Gradients are summed over the copies in the precision of `packed`.
    """
    if transformed():
        return tuple(_differentiable_copies(b, p, flags, dtype) for b, p in zip(bits, packed, strict=True))
    return _ScatterCopies.apply(flags, dtype, *bits, *packed)


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which accept operators but no `Function`."""
    if torch.compiler.is_compiling():
        return False
    level = cast(int, forward_ad._current_level)  # pyright: ignore[reportPrivateUsage] torch has no public name for it
    functorch: bool = torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage] likewise
    return functorch or level >= 0


def _differentiable_copies(bits: Tensor, packed: Tensor, flags: Tensor, dtype: torch.dtype) -> Tensor:
    """One weight's copies: each entry is read from its index among the kept ones, or is the zero behind them."""
    kept = bits.flatten().bool()
    index = torch.where(kept, kept.cumsum(0) - 1, packed.numel())
    dense = F.pad(packed.to(dtype).flatten(), (0, 1))[index].view(bits.shape)
    return dense.unsqueeze(-3) * _masks(bits, flags)


class _ScatterCopies(torch.autograd.Function):
    """For the backward pass it holds the bits, which modules hold anyway, and saves no tensor.

    So a forward pass recomputed under gradient checkpointing saves as many tensors as the first, whether a weight's
    copies are made alone there or were made with others' before.
    """

    @staticmethod
    def forward(ctx: Any, flags: Tensor, dtype: torch.dtype, *bits_and_packed: Tensor) -> tuple[Tensor, ...]:
        number = len(bits_and_packed) // 2
        bits, packed = bits_and_packed[:number], bits_and_packed[number:]
        ctx.bits, ctx.flags = bits, flags
        ctx.set_materialize_grads(False)  # a weight without a gradient gets none
        ctx.sizes, ctx.dtype = [p.numel() for p in packed], packed[0].dtype
        blocks = [b.reshape(-1, *b.shape[-2:]) for b in bits]
        stacked, values = _cat(blocks), _cat(packed).to(dtype)
        dense = values.new_zeros(stacked.shape).masked_scatter_(stacked.bool(), values)
        copies = (dense.unsqueeze(-3) * _masks(stacked, flags)).split_with_sizes([len(b) for b in blocks])
        return tuple(part.view(*b.shape[:-2], *part.shape[1:]) for part, b in zip(copies, bits, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        some = next((grad for grad in grads if grad is not None), None)
        if some is None:
            return (None,) * (2 + 2 * len(grads))
        shape = some.shape[-3:]
        blocks: list[Tensor] = [b.reshape(-1, *b.shape[-2:]) for b in ctx.bits]
        stacked = _cat(blocks)
        parts = [
            some.new_zeros(len(b), *shape) if grad is None else grad.reshape(-1, *shape)
            for grad, b in zip(grads, blocks, strict=True)
        ]
        dense = (_cat(parts) * _masks(stacked, ctx.flags)).sum(-3, dtype=ctx.dtype).flatten()
        # A running count numbers the kept entries from 1. One that is not kept adds its zero to the one before it:
        # no branch, and no list of indices, whose length the host would have to wait for.
        index = stacked.flatten().bool().cumsum(0)
        entries = dense.new_zeros(sum(ctx.sizes) + 1).scatter_add_(0, index, dense)[1:].unsqueeze(1)
        of_packed = zip(entries.split_with_sizes(ctx.sizes), grads, strict=True)
        return None, None, *(None for _ in grads), *(None if grad is None else part for part, grad in of_packed)


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([*tensors])


def _masks(bits: Tensor, flags: Tensor) -> Tensor:
    """The d masks (..., d, r, width) as bytes of 0 and 1, far faster on a CPU than booleans."""
    return (bits.unsqueeze(-3) & flags).sign()


# The masked copies of all tied weights of a model, made at once in each of its forward passes.


class MaskedCopyCache:
    """Hooks on a model between which the copies of its weights are made together, when the first is asked for.

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
        self.weights = [w for w in distinct if "packed" in dict(w.named_parameters(recurse=False))]  # not from a pool
        self.handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, *_: Any) -> None:
        if eager():
            _passes().append(_Pass(self.weights))

    def _end(self, *_: Any) -> None:
        if eager() and _passes() and _passes()[-1].weights is self.weights:
            _passes().pop()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class _Copies(NamedTuple):
    packed: nn.Parameter
    version: int
    copies: Tensor


class _Pass:
    """The copies that a forward pass has made, by precision and by whether they have gradients.

    Each is of a version of its parameter: a pass that Ctrl-C ended calls no hook, so the next one may find it here.
    """

    def __init__(self, weights: Sequence[TiedWeight]):
        self.weights = weights
        self.made: dict[tuple[torch.dtype, bool], dict[TiedWeight, _Copies]] = {}

    def find(self, weight: TiedWeight, dtype: torch.dtype) -> Tensor | None:
        """None if the weight is none of the model's, or its entries are others by now."""
        key = dtype, torch.is_grad_enabled()  # the first pass of a checkpointed block has no gradients
        if key not in self.made and weight in self.weights:
            self.made[key] = _copies_of_all(self.weights, dtype)
        found = self.made.get(key, {}).get(weight)
        current = found and found.packed is weight.packed and found.version == _version(found.packed)
        return found.copies if found and current else None


_THREAD = threading.local()  # forward passes run in threads of their own under nn.DataParallel


def _passes() -> list[_Pass]:
    """Those that this thread is in, the innermost last: a model may call another one."""
    return vars(_THREAD).setdefault("passes", [])


def _cached_copies(weight: TiedWeight, dtype: torch.dtype) -> Tensor:
    """The copies of a weight, made with those of its model if that is in a forward pass."""
    for running in reversed(_passes()) if eager() else ():
        copies = running.find(weight, dtype)
        if copies is not None:
            return copies
    return scatter_copies([weight.bits], [weight.packed], weight.flags, dtype)[0]


def eager() -> bool:
    """Compilers and exporters see each layer alone; the former fuse what it does."""
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] documented, but not in its __all__
    return not (torch.compiler.is_compiling() or tracing)


def _copies_of_all(weights: Iterable[TiedWeight], dtype: torch.dtype) -> dict[TiedWeight, _Copies]:
    made: dict[TiedWeight, _Copies] = {}
    for group in _groups(weights):
        parts = scatter_copies([w.bits for w in group], [w.packed for w in group], group[0].flags, dtype)
        made |= {w: _Copies(w.packed, _version(w.packed), part) for w, part in zip(group, parts, strict=True)}
    return made


def _version(packed: Tensor) -> int:
    return 0 if packed.is_inference() else packed._version  # inference mode counts none


def _groups(weights: Iterable[TiedWeight]) -> list[list[TiedWeight]]:
    """Weights whose copies can be made by one operator: of one shape, device, precision and need of a gradient."""
    groups: defaultdict[tuple[Any, ...], list[list[TiedWeight]]] = defaultdict(lambda: [[]])
    for weight in weights:
        packed, shape = weight.packed, weight.bits.shape[-2:]
        if weight.unmasked or hasattr(packed, "full_tensor") or not packed.numel():
            continue  # nothing to mask; or a part is here (FSDP2), or nothing (ZeRO), until its layer runs
        groups_of_kind = groups[packed.device, packed.dtype, shape, weight.num_tied, packed.requires_grad]
        entries = weight.bits.numel() + sum(other.bits.numel() for other in groups_of_kind[-1])
        if groups_of_kind[-1] and entries > LARGEST_GROUP:
            groups_of_kind.append([])
        groups_of_kind[-1].append(weight)
    return [group for groups_of_kind in groups.values() for group in groups_of_kind]
