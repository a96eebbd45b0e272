"""Paired differences against scipy.stats, hand arithmetic, and what an interval promises."""

import numpy as np
import pytest
from scipy import stats

from capaboost.tables.statistics import Difference, paired_difference, spread_of


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_interval_is_that_of_the_paired_t_test(count):
    x, y = np.random.default_rng(count).normal([[80], [79]], [[2], [3]], (2, count))
    of = paired_difference(dict(enumerate(x.tolist())), dict(enumerate(y.tolist())))
    expected = stats.ttest_rel(x, y).confidence_interval(0.95)
    assert of.interval == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert (of.mean, of.pairs) == (pytest.approx((x - y).mean()), count)


def test_by_hand():
    of = paired_difference({42: 91.0, 43: 93.0, 44: 95.0}, {42: 90.0, 43: 91.0, 44: 92.0})  # 1, 2, 3
    half = 4.30265273 / 3**0.5  # t of 2 degrees of freedom; the deviation is 1
    assert of.mean == 2
    assert of.interval == pytest.approx((2 - half, 2 + half), rel=1e-8)


def test_pairs_are_runs_of_one_seed_whatever_their_order():
    of = paired_difference({44: 95.0, 42: 91.0, 7: 0.0}, {42: 90.0, 43: 50.0, 44: 92.0})
    assert (of.mean, of.pairs) == (2, 2)


def test_one_pair_has_no_interval_and_none_no_difference():
    assert paired_difference({1: 3.0}, {1: 2.5, 2: 9.0}) == Difference(0.5, None, 1)
    assert paired_difference({1: 3.0}, {2: 2.5}) is None


def test_equal_differences_leave_no_doubt():
    assert paired_difference({1: 3.0, 2: 4.0}, {1: 2.0, 2: 3.0}).interval == (1, 1)


def test_the_interval_holds_the_expected_difference_in_95_of_100_repetitions():
    draws = np.random.default_rng(0).normal(1.5, 2, (4000, 3)).tolist()
    found = [paired_difference(dict(enumerate(draw)), dict.fromkeys(range(3), 0.0)).interval for draw in draws]
    share = sum(low < 1.5 < high for low, high in found) / len(found)
    assert share == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 4000) ** 0.5)


def test_deviation_is_that_of_a_sample():
    assert spread_of([90.0, 94.0, 98.0]).std == 4
    assert spread_of([90.0]).std is None
