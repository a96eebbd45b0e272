"""Static masks: their settings, and how they follow from a seed, alike on every device, process and version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from capaboost_core.errors import UserError
from capaboost_core.settings import Settings, refuse

TIED: dict[str, Any] = {"num_tied": 2, "density": 0.5}
PLAIN: dict[str, Any] = {"num_tied": 1, "density": 1.0}


class MaskSettings(Settings):
    """d parallel modules that share one weight, each through its own mask (arXiv 2407.01320, Eq. 3-5).

    A weight w of shape (out, in) is seen by module i as w * m_i, with m_i a boolean mask of exactly
    round(density * numel) ones. `num_tied=1, density=1.0` is the plain method.
    """

    num_tied: int = Field(
        default=2,
        ge=1,
        le=8,  # the masks of an entry are the bits of one byte
        description="d, the number of parallel modules that share the weight.",
    )
    density: float = Field(
        default=0.5,
        gt=0,
        le=1,
        examples=["0.5"],
        description="Share of entries that each mask keeps; n / m with mask nm.",
    )
    mask: Literal["random", "nm", "same", "dropout"] = Field(
        default="random",
        description="random: one mask per copy; same: all copies share the first mask; nm: n of each m neighbours "
        "along the reduction dimension; dropout: redrawn at every training step.",
    )
    n: int | None = Field(default=None, ge=1, description="Kept entries of each group, with mask nm.")
    m: int | None = Field(default=None, ge=1, description="Group length, with mask nm.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**64,
        description="Seed of the masks, independent of the run's own; only with masks that are drawn once.",
    )

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
    def _check_masks(self) -> Self:
        self._check_mask_groups()
        used = self.used(self.__dict__)
        for name, field in MaskSettings.model_fields.items():
            value = getattr(self, name)
            if name not in used and value != field.default:
                refuse(name, value, "it means nothing without masks that are drawn once; drop it")
        return self

    def _check_mask_groups(self) -> None:
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


def mask_bits(config: MaskSettings, path: str, weight: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """All d masks of one weight in a uint8 array of `shape`: bit i of an entry says that copy i keeps it.

    Each (seed, path, weight, copy) has its own random stream. `random` keeps the round(density * numel) entries with
    the smallest random integers, `nm` the n smallest of each m neighbours along the last, the reduction, dimension.

    Args:
        config: Gives mask kind, density, num_tied and seed.
        path: Module path in the base model, such as `blocks.0.attn.qkv`.
        weight: Name of the weight within the module, such as `A`.
        shape: (out, in).

    Raises:
        UserError: If the last dimension is not a multiple of m, or no entry would be kept.
    """
    if config.mask == "dropout" or config.density == 1:
        return np.full(shape, (1 << config.num_tied) - 1, dtype=np.uint8)
    if config.m is not None and shape[-1] % config.m:
        raise UserError(
            f"{config.n}:{config.m} masks need a multiple of {config.m} along every reduction dimension, but "
            f"{path} has {shape[-1]} for {weight}; choose r as a multiple of m, or mask: random"
        )
    bits = np.zeros(shape, dtype=np.uint8)
    for copy in range(config.num_tied):
        drawn = hash_random(f"{config.seed}/{path}/{weight}/{0 if config.mask == 'same' else copy}", shape)
        groups = drawn.reshape(-1, config.m or drawn.size)
        kept = _smallest(groups, config.n or round(config.density * drawn.size)).reshape(shape)
        bits |= kept.astype(np.uint8) << np.uint8(copy)
    if not bits.any():
        raise UserError(f"density {config.density} keeps no entry of {path} {weight} {shape}; raise density or r")
    return bits


def hash_random(key: str, shape: tuple[int, ...]) -> NDArray[np.uint64]:
    """Uniform 64-bit integers from a random stream of the key's own.

    The first 128 bits of the key's SHA-256 key a Philox stream (Salmon et al., 2011), whose raw output NumPy holds
    fixed across versions.
    """
    words = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Philox(key=words).random_raw(int(np.prod(shape))).reshape(shape)


def checksum(named_bits: Iterable[tuple[str, NDArray[np.uint8]]]) -> str:
    """SHA-256 over names, shapes and bits of all masks, in the order of the names."""
    digest = hashlib.sha256()
    for name, bits in sorted(named_bits, key=lambda item: item[0]):
        digest.update(f"{name}{bits.shape}".encode())
        digest.update(np.ascontiguousarray(bits).tobytes())
    return digest.hexdigest()


def _smallest(groups: NDArray[np.uint64], count: int) -> NDArray[np.bool_]:
    """Exactly `count` ones in each row, at its smallest integers; of equal ones the first in order are kept."""
    if count == 0:
        return np.zeros(groups.shape, dtype=bool)
    largest = np.partition(groups, count - 1, axis=1)[:, count - 1 : count]
    kept, ties = groups < largest, groups == largest
    return kept | (ties & (ties.cumsum(1) <= count - kept.sum(1, keepdims=True)))
