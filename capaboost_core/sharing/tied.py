"""The shared weight: one parameter of exactly the kept entries, seen as d masked copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from capaboost_core.sharing.together import copies

if TYPE_CHECKING:
    from capaboost_core.sharing.settings import Tying


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
        config: Tying,
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
