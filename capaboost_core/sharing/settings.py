"""Settings of weight sharing, for any method with matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.settings.base import Settings, refuse
from capaboost_core.sharing.tied import TiedWeight

TIED, PLAIN = dict(num_tied=2, density=0.5), dict(num_tied=1, density=1.0)


class Tying(Settings):
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
        for name, field in Tying.model_fields.items():
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
