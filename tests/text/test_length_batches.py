"""Batches hold each row once, differ by epoch only, and pad little."""

import numpy as np
import pytest

from capaboost_text.encode import token_batches, train_batches

LENGTHS = np.random.default_rng(0).integers(4, 128, size=1003)


def padding(batches) -> int:
    return sum(int(LENGTHS[batch].max()) * len(batch) - int(LENGTHS[batch].sum()) for batch in batches)


def test_each_row_comes_once_in_an_order_of_seed_and_epoch():
    batches = train_batches(LENGTHS, 16, seed=3, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert sorted(map(len, batches)) == [11] + [16] * 62
    again, later, other = (train_batches(LENGTHS, 16, *key) for key in ((3, 0), (3, 1), (4, 0)))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(later))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_batches_pad_a_fifth_of_what_chance_pads():
    shuffled = np.random.default_rng(1).permutation(1003)
    assert padding(train_batches(LENGTHS, 16, 0, 0)) < padding(np.array_split(shuffled, 63)) / 5


def test_short_and_long_batches_come_mixed():
    means = [LENGTHS[batch].mean() for batch in train_batches(LENGTHS, 16, 0, 0)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3


@pytest.mark.parametrize("tokens", [1, 200, 10**6])
def test_token_batches_keep_within_the_tokens(tokens):
    rows = np.arange(3, 1003, 2)
    batches = list(token_batches(LENGTHS, rows, tokens))
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    assert all(len(batch) == 1 or len(batch) * LENGTHS[batch].max() <= tokens for batch in batches)
    assert list(token_batches(LENGTHS, rows[:0], tokens)) == []
