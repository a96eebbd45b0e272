"""Random integers from a text: the same on every device, process and version, in any order of asking."""

from __future__ import annotations

import hashlib

import numpy as np


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform 64-bit integers from a stream that is the key's own.

    The first 128 bits of the key's SHA-256 key a Philox stream (Salmon et al., 2011), whose raw output NumPy holds
    fixed across versions.
    """
    words = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Philox(key=words).random_raw(int(np.prod(shape))).reshape(shape)
