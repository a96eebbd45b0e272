"""Batches of rows of like length, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

GROUP = 50  # batches among whose rows lengths are sorted: the usual compromise of padding and chance


def train_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """All row indices once, in an order that depends on (seed, epoch) only.

    The rows are shuffled, sorted by length within groups of 50 batches, cut, and the batches shuffled.
    Only the last of the batches, wherever it ends up, may be smaller.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    groups = [order[at : at + GROUP * batch_size] for at in range(0, len(order), GROUP * batch_size)]
    ordered = np.concatenate([group[np.argsort(lengths[group], kind="stable")] for group in groups])
    batches = [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def token_batches(lengths: np.ndarray, rows: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """The given rows, longest first, in batches of at most so many tokens, padding included, or of one row."""
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    at = 0
    while at < len(ordered):
        count = max(1, tokens // max(1, int(lengths[ordered[at]])))
        yield ordered[at : at + count]
        at += count
