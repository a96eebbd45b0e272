"""Settings of weight sharing, for any method with matrices."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd import forward_ad

from capaboost_core.settings.base import Settings, refuse

# From packed entries to masked copies, for one tied weight or for many at once.


def scatter_copies(
    bits: Sequence[Tensor], packed: Sequence[Tensor], flags: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The copies (..., d, r, width) of each weight, in a precision; the number of operators is that of one weight.

    Args:
        bits: The masks of each weight, (..., r, width), with the same r and width in all.
        packed: The kept entries of each, (kept, 1), of one type.
        flags: Which bit is whose, (d, 1, 1).
        dtype: Of the copies. Gradients are summed over the copies in the precision of `packed`.
    """
    if transformed():
        return tuple(_plain(b, p, flags, dtype) for b, p in zip(bits, packed, strict=True))
    return _ScatterCopies.apply(flags, dtype, *bits, *packed)


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which take operators alone."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _plain(bits: Tensor, packed: Tensor, flags: Tensor, dtype: torch.dtype) -> Tensor:
    """One weight's copies: each entry is read from its place among those kept, or is the zero behind them."""
    kept = bits.flatten().bool()
    place = torch.where(kept, kept.cumsum(0) - 1, packed.numel())
    dense = F.pad(packed.to(dtype).flatten(), (0, 1))[place].view(bits.shape)
    return dense.unsqueeze(-3) * _masks(bits, flags)


class _ScatterCopies(torch.autograd.Function):
    """For the backward pass it holds the bits, which modules hold anyway, and saves no tensor.

    So a forward pass recomputed under gradient checkpointing saves as many tensors as the first, whether a weight's
    copies are made alone there or were made with others' before.
    """

    @staticmethod
    def forward(ctx, flags, dtype, *bits_and_packed):
        bits, packed = _halves(bits_and_packed)
        ctx.bits, ctx.flags = bits, flags
        ctx.set_materialize_grads(False)  # a weight without a gradient keeps none
        ctx.sizes, ctx.dtype = [p.numel() for p in packed], packed[0].dtype
        stacked, values = _stack(bits), _cat(packed).to(dtype)
        dense = values.new_zeros(stacked.shape).masked_scatter_(stacked.bool(), values)
        copies = (dense.unsqueeze(-3) * _masks(stacked, flags)).split([_blocks(b) for b in bits])
        return tuple(part.view(*b.shape[:-2], *part.shape[1:]) for part, b in zip(copies, bits, strict=True))

    @staticmethod
    def backward(ctx, *grads):
        stacked = _stack(ctx.bits)
        some = next((grad for grad in grads if grad is not None), None)
        if some is None:
            return (None,) * (2 + 2 * len(ctx.bits))
        shape = (-1, *some.shape[-3:])
        parts = [
            some.new_zeros(_blocks(b), *shape[1:]) if grad is None else grad.reshape(shape)
            for grad, b in zip(grads, ctx.bits, strict=True)
        ]
        dense = (_cat(parts) * _masks(stacked, ctx.flags)).sum(-3, dtype=ctx.dtype).flatten()
        # A running count numbers the kept entries from 1. One that is not kept adds its zero to the one before it:
        # no branch, and no list of places, whose length the host would have to wait for.
        place = stacked.flatten().bool().cumsum(0)
        entries = dense.new_zeros(sum(ctx.sizes) + 1).scatter_add_(0, place, dense)[1:].unsqueeze(1)
        found = [
            part if grad is not None else None for part, grad in zip(entries.split(ctx.sizes), grads, strict=True)
        ]
        return None, None, *(None for _ in ctx.bits), *found


def _halves(values: tuple) -> tuple[tuple, tuple]:
    return values[: len(values) // 2], values[len(values) // 2 :]


def _blocks(bits: Tensor) -> int:
    return bits.numel() // (bits.shape[-2] * bits.shape[-1])


def _stack(bits: Sequence[Tensor]) -> Tensor:
    """(blocks of all, r, width)."""
    return _cat([b.reshape(-1, *b.shape[-2:]) for b in bits])


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _masks(bits: Tensor, flags: Tensor) -> Tensor:
    """The d masks (..., d, r, width) as bytes of 0 and 1, far faster on a CPU than booleans."""
    return (bits.unsqueeze(-3) & flags).sign()


# The masked copies of all tied weights of a model, made at once in each of its forward passes.


MOST = 1 << 22  # entries made at once: above it time is in the entries, and memory counts
_THREAD = threading.local()


class MaskedCopyCache:
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

    def __init__(self, together: MaskedCopyCache):
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
    return scatter_copies([weight.bits], [weight.packed], weight.flags, dtype)[0]


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
        parts = scatter_copies([w.bits for w in group], [w.packed for w in group], group[0].flags, dtype)
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


# The shared weight: one parameter of exactly the kept entries, seen as d masked copies.


class TiedWeight(nn.Module):
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
    """

    def __init__(
        self,
        config: TyingSettings,
        masks: np.ndarray,
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
        for name in ("bits", "flags"):
            self.register_buffer(name, None, persistent=False)
        self._place({"bits": torch.from_numpy(np.ascontiguousarray(masks)), "flags": torch.from_numpy(flags)})

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
            return copies(self, dtype)
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TiedWeight:
        """Masks keep their values over every move: `to_empty` and the meta device would lose them."""
        masks, was_meta = self.masks or {"bits": self.bits, "flags": self.flags}, self.held.is_meta
        super()._apply(fn, recurse)
        self._place(masks)
        if was_meta and not self.held.is_meta:
            self.reset_parameters()
        return self

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Accept the vector of older files too, and have masks where `assign=True` leaves the meta device."""
        if f"{prefix}packed" in state:
            state[f"{prefix}packed"] = column(state[f"{prefix}packed"])
        super()._load_from_state_dict(state, prefix, *args)
        self._place(self.masks or {})

    def _place(self, masks: dict[str, Tensor]) -> None:
        """Put the masks where the module is; on the meta device their values are kept separately."""
        for name, mask in masks.items():
            setattr(self, name, mask.to(self.held.device))
        self.masks = {name: mask.cpu() for name, mask in masks.items()} if self.held.is_meta else None

    def extra_repr(self) -> str:
        shape = tuple(self.bits.shape)
        return f"shape={shape}, num_tied={self.num_tied}, kept={self.packed.numel()}/{self.bits.numel()}"


def column(packed: Tensor) -> Tensor:
    """The packed entries as (kept, 1); files of version 0.1.0 hold a vector."""
    return packed.unsqueeze(1) if packed.ndim == 1 else packed


TIED, PLAIN = dict(num_tied=2, density=0.5), dict(num_tied=1, density=1.0)


class TyingSettings(Settings):
    """d parallel modules that share one weight, each through its own mask (arXiv 2407.01320, Eq. 3-5).

    A weight w of shape (out, in) is seen by module i as w * m_i, with m_i a boolean mask of exactly
    round(density * numel) ones. `num_tied=1, density=1.0` is the plain method. It stands before `Method` among a
    method's bases.
    """

    num_tied: int = Field(
        2,
        ge=1,
        le=8,  # the masks of an entry are the bits of one byte
        description="d, the number of parallel modules that share the weight.",
    )
    density: float = Field(
        0.5, gt=0, le=1, examples=["0.5"], description="Share of entries that each mask keeps; n / m with mask nm."
    )
    mask: Literal["random", "nm", "same", "dropout"] = Field(
        "random",
        description="random: one mask per copy; same: all copies share the first mask; nm: n of each m neighbours "
        "along the reduction dimension; dropout: redrawn at every training step.",
    )
    n: int | None = Field(None, ge=1, description="Kept entries of each group, with mask nm.")
    m: int | None = Field(None, ge=1, description="Group length, with mask nm.")
    seed: int = Field(
        0,
        ge=0,
        lt=2**64,
        description="Seed of the masks, independent of the run's own; only with masks that are drawn once.",
    )

    @property
    def is_plain(self) -> bool:
        """Whether there is one module without a mask. (With several, density 1 is the end of a scale.)"""
        return self.num_tied == 1 and self.density == 1

    @property
    def label(self) -> str:
        """The name in results and folders: `capaboost-` before a method whose weights are tied or masked."""
        return super().label if self.is_plain else f"capaboost-{super().label}"

    def make_weight(
        self,
        name: str,
        masks: Callable[[], np.ndarray],
        initial: Tensor,
        initialise: Callable[[Tensor], Any],
        parts: Sequence[int] = (),
    ) -> nn.Module:
        """A weight that d modules share: `TiedWeight`, or what has its `copies`, `executed`, `kept` and `trains`.

        Args:
            name: Of the weight in its layer.
            masks: Gives the drawn masks, as `TiedWeight` takes them.
            initial: Dense initial values.
            initialise: Fills values anew.
            parts: Widths of the parts along the last dimension that belong to slices of an output.
        """
        return TiedWeight(self, masks(), initial, initialise)

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """Without masks that are drawn once there is nothing to seed; n and m belong to one kind of mask."""
        used = super().used(values)
        mask = values.get("mask", "random")
        if mask == "dropout":
            used -= {"seed"}
        if mask != "nm":
            plain = all(values.get(name) == value for name, value in PLAIN.items())
            used -= {"n", "m", "mask", "seed"} if plain else {"n", "m"}
        return used

    @model_validator(mode="after")
    def _check_tying(self) -> Self:
        self._check_groups()
        used = self.used(self.__dict__)
        for name, field in TyingSettings.model_fields.items():
            value = getattr(self, name)
            if name not in used and value != field.default:
                refuse(name, value, "it means nothing without masks that are drawn once; drop it")
        return self

    def _check_groups(self) -> None:
        n, m = self.n, self.m
        if self.mask != "nm":
            if n is not None or m is not None:
                raise ValueError(f"n and m belong to mask: nm, but mask is {self.mask}; set mask: nm or drop them")
            return
        if n is None or m is None:
            raise ValueError("mask: nm needs n and m; for 2:4 masks set n: 2 and m: 4")
        if n > m:
            raise ValueError(f"n is {n} and m is {m}; n of each m are kept, so set n to {m} or less")
        if "density" in self.model_fields_set and self.density != n / m:
            raise ValueError(f"density follows from n and m with mask: nm; drop it or set it to {n / m}")
        self.derive("density", n / m)
