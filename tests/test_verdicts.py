"""Verdicts on differences: against scipy's tests, published examples, and what they promise over repetitions."""

import numpy as np
import pytest
from scipy import stats

from capaboost.tables.statistics import MARGIN, Pooled, judge, pairs_needed, pooled_deviation


def test_one_difference_is_the_paired_t_test():
    z = np.random.default_rng(0).normal(0.8, 1, 12)
    (of,) = judge({"a": z.tolist()}).values()
    expected = stats.ttest_1samp(z, 0)
    interval = expected.confidence_interval(0.95)
    assert of.p == pytest.approx(expected.pvalue)
    assert of.interval == pytest.approx((interval.low, interval.high))
    lower = stats.ttest_1samp(z, -MARGIN, alternative="greater").pvalue
    upper = stats.ttest_1samp(z, MARGIN, alternative="less").pvalue
    assert of.p_equivalent == pytest.approx(max(lower, upper))


def test_holm_by_hand():
    """p of 0.01, 0.04, 0.03 and 0.005 become 0.03, 0.06, 0.06 and 0.02 (Holm, 1979)."""
    family = {}
    for name, p in dict(a=0.01, b=0.04, c=0.03, d=0.005).items():
        z = np.array([-1.0, 0.0, 1.0, 0.5, -0.5])
        z = z / z.std(ddof=1) + stats.t.isf(p / 2, 4) / 5**0.5
        family[name] = z.tolist()
    assert {n: round(v.p, 9) for n, v in judge(family).items()} == dict(a=0.03, b=0.06, c=0.06, d=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_leaves_zero_out_where_holm_finds_a_difference(seed):
    random = np.random.default_rng(seed)
    family = {str(i): random.normal(random.choice([0, 1, 2]), 1, random.integers(2, 9)).tolist() for i in range(8)}
    for of in judge(family).values():
        assert of.differs == (not of.interval[0] <= 0 <= of.interval[1])


def test_of_ten_methods_that_are_equal_one_differs_in_at_most_one_family_of_twenty():
    draws = np.random.default_rng(1).normal(0, 1, (600, 10, 5))
    found = [any(v.differs for v in judge(dict(enumerate(draw.tolist()))).values()) for draw in draws]
    assert np.mean(found) < 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.9), (1.0, 0.05)])
def test_equivalence_is_found_where_it_is_and_at_the_margin_in_one_of_twenty(shift, share):
    draws = np.random.default_rng(2).normal(shift, 1.2, (1000, 24))
    found = np.mean([judge({"a": draw.tolist()})["a"].is_equivalent for draw in draws])
    assert found > share if shift == 0 else found < share + 0.021


@pytest.mark.parametrize("level", [0.05, 0.05 / 12])
def test_as_many_pairs_as_are_needed_find_the_margin_with_80_percent_power(level):
    needed = pairs_needed(1.5, level=level)
    draws = np.random.default_rng(3).normal(MARGIN, 1.5, (4000, needed))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < level) == pytest.approx(0.8, abs=0.02)


def test_pairs_needed_of_published_deviations():
    assert pairs_needed(1.22 * 2**0.5) == 26  # 24 by the normal distribution
    assert [pairs_needed(1.73, margin) for margin in (2.0, 3.0)] == [8, 5]


@pytest.mark.parametrize(("z", "text"), [
    ([3.0, 3.1, 2.9, 3.0], "differs"), ([0.5, 0.52, 0.48, 0.5], "differs, but equivalent within 1"),
    ([0.1, -0.1, 0.05, 0.0], "equivalent within 1"), ([2.0, -1.5, 0.5, 1.0], "open: 20 pairs"),
])  # fmt: skip
def test_words(z, text):
    assert str(judge({"a": z})["a"]) == text


def test_one_pair_has_no_verdict():
    assert judge({"a": [1.0]}) == {}


def study(std: float, methods: int, seeds: int) -> dict[str, dict[int, float]]:
    """Values of methods that differ, at seeds that differ, with a rest of one deviation."""
    random = np.random.default_rng(4)
    values = random.normal(0, 9, (methods, 1)) + random.normal(0, 5, seeds) + random.normal(0, std, (methods, seeds))
    return {str(i): dict(enumerate(row)) for i, row in enumerate(values.tolist())}


def test_the_pooled_deviation_is_that_of_a_difference_and_no_outlier_widens_it():
    values = study(1.2, 400, 3)
    of = pooled_deviation(values)
    assert of.std == pytest.approx(1.2 * 2**0.5, rel=0.1)
    assert of.freedom == int(0.48 * 2 * 399)
    apart = values | {str(i): {0: 90.0, 1: 5.0, 2: 40.0} for i in range(20)}
    assert pooled_deviation(apart).std == pytest.approx(of.std, rel=0.1)


def test_the_pooled_deviation_is_worth_its_degrees_of_freedom():
    """A t-test by it finds a difference that is not there in one of twenty studies."""
    random, found = np.random.default_rng(5), []
    for rest in random.normal(0, 1, (1500, 12, 3)):
        of = pooled_deviation({str(i): dict(enumerate(row)) for i, row in enumerate(rest.tolist())})
        t = (rest[0] - rest[1]).mean() / (of.std / 3**0.5)
        found.append(2 * stats.t.sf(abs(t), of.freedom) < 0.05)
    assert np.mean(found) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("values", [{}, study(1, 9, 3), study(1, 20, 1)])
def test_too_few_have_no_pooled_deviation(values):
    assert pooled_deviation(values) is None


def test_two_degrees_of_freedom_are_pooled_unless_the_own_deviation_is_another():
    pooled = Pooled(1.7, 96)
    verdicts = judge({"few": [4.0, 5.0, 3.0], "apart": [30.0, -20.0, 3.0], "many": [4.0, 5.0, 3.0, 4.0]}, pooled)
    assert {name: of.pooled for name, of in verdicts.items()} == {"few": True, "apart": False, "many": False}
    assert verdicts["few"].p == pytest.approx(3 * 2 * stats.t.sf(4 / (1.7 / 3**0.5), 96))
