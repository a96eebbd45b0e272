"""Static masks from a hash: the same on every device, process, version and construction order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from capaboost_core.errors import UserError
from capaboost_core.sharing.tied import TyingSettings

# Random integers from a text: the same on every device, process and version, in any order of asking.


def hash_random(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform 64-bit integers from a stream that is the key's own.

    The first 128 bits of the key's SHA-256 key a Philox stream (Salmon et al., 2011), whose raw output NumPy holds
    fixed across versions.
    """
    words = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Philox(key=words).random_raw(int(np.prod(shape))).reshape(shape)


def mask_bits(config: TyingSettings, path: str, weight: str, shape: tuple[int, ...]) -> np.ndarray:
    """All d masks of one weight in a uint8 array of `shape`: bit i of an entry says that copy i keeps it.

    Each (seed, path, weight, copy) has its own stream of draws. `random` keeps the round(density * numel) entries
    with the smallest draws, `nm` the n smallest of each m neighbours along the last, the reduction, dimension.

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
    if config.mask == "nm" and shape[-1] % config.m:
        raise UserError(
            f"{config.n}:{config.m} masks need a multiple of {config.m} along every reduction dimension, but "
            f"{path} has {shape[-1]} for {weight}; choose r as a multiple of m, or mask: random"
        )
    bits = np.zeros(shape, dtype=np.uint8)
    for copy in range(config.num_tied):
        drawn = hash_random(f"{config.seed}/{path}/{weight}/{0 if config.mask == 'same' else copy}", shape)
        kept = _keep_groups(drawn, config.n, config.m) if config.mask == "nm" else _keep(drawn, config.density)
        bits |= kept.astype(np.uint8) << np.uint8(copy)
    if not bits.any():
        raise UserError(f"density {config.density} keeps no entry of {path} {weight} {shape}; raise density or r")
    return bits


def checksum(named_bits: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 over names, shapes and bits of all masks, in the order of the names."""
    digest = hashlib.sha256()
    for name, bits in sorted(named_bits, key=lambda item: item[0]):
        digest.update(f"{name}{bits.shape}".encode())
        digest.update(np.ascontiguousarray(bits).tobytes())
    return digest.hexdigest()


def _keep(drawn: np.ndarray, density: float) -> np.ndarray:
    """Exactly round(density * numel) ones; of equal draws the first in order are kept."""
    flat = drawn.reshape(-1)
    count = round(density * flat.size)
    if count == 0:
        return np.zeros(drawn.shape, dtype=bool)
    threshold = np.partition(flat, count - 1)[count - 1]
    kept = flat < threshold
    ties = np.flatnonzero(flat == threshold)
    kept[ties[: count - kept.sum()]] = True
    return kept.reshape(drawn.shape)


def _keep_groups(drawn: np.ndarray, n: int, m: int) -> np.ndarray:
    groups = drawn.reshape(-1, m)
    smallest = np.argsort(groups, axis=1, kind="stable")[:, :n]
    kept = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(kept, smallest, True, axis=1)
    return kept.reshape(drawn.shape)
