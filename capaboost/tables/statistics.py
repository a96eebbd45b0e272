"""Means over seeds, paired differences of two methods, and the verdict on each difference.

Verdicts are corrected for the number of differences of a task (Holm), and say whether a difference is small enough
to be none. Distributions are scipy's; Holm's procedure is three lines here, for which statsmodels would bring pandas
and patsy along.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1); of one value there is no deviation."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences and its confidence interval; of one pair there is no interval."""

    mean: float
    interval: tuple[float, float] | None
    pairs: int


def spread_of(values: Collection[float]) -> Spread:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Differences over the seeds that both have, in their order."""
    return [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Compare two methods over the n seeds that both have; None if they share none.

    With z_s = values_s - reference_s, the interval is mean(z) +- t * std(z) / sqrt(n), where std is the sample
    standard deviation and t the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom. It holds
    the expected difference in 95 % of repetitions if the z_s are independent and normal.

    Args:
        values: The method's value by seed.
        reference: The same of the method that it is compared with.
    """
    differences = paired(values, reference)
    if not differences:
        return None
    of = spread_of(differences)
    if of.std is None:
        return Difference(of.mean, None, 1)
    half = float(stdtrit(of.count - 1, (1 + CONFIDENCE) / 2)) * of.std / math.sqrt(of.count)
    return Difference(of.mean, (of.mean - half, of.mean + half), of.count)


MARGIN = 1.0  # points within which two methods are equivalent
LEVEL, POWER = 0.05, 0.8
FEW = 2  # degrees of freedom, up to which a deviation is pooled over the methods of a task
LEAST = 10  # methods over which a deviation is pooled
EFFICIENCY = (
    0.48  # of the median of exponential variables, as variances of two degrees of freedom are; others have more
)
STRANGE = 0.01  # probability below which a method's own deviation is not the pooled one
MOST = 100_000  # pairs


@dataclass(frozen=True)
class Pooled:
    """The deviation of a paired difference that all methods of a task share, with its degrees of freedom."""

    std: float
    freedom: int


@dataclass(frozen=True)
class Verdict:
    """What n pairs say of a difference.

    Attributes:
        interval: At the level of Holm's step: it leaves 0 out exactly where Holm's test, at 5 % for the family, finds
            a difference. All intervals of a family hold together with less than 95 %.
        p: Of no difference, two-sided, corrected by Holm.
        p_equivalent: Of a difference of MARGIN or more, the larger one of two one-sided tests, not corrected.
        needed: Pairs with which a difference of MARGIN is found with 80 % power, two-sided at 5 %.
        pooled: Whether the deviation is the pooled one.
    """

    interval: tuple[float, float]
    p: float
    p_equivalent: float
    needed: int
    pooled: bool

    @property
    def differs(self) -> bool:
        return self.p < LEVEL

    @property
    def is_equivalent(self) -> bool:
        return self.p_equivalent < LEVEL

    def __str__(self) -> str:
        small = f"equivalent within {MARGIN:g}"
        if self.differs:
            return f"differs, but {small}" if self.is_equivalent else "differs"
        return small if self.is_equivalent else f"open: {self.needed:,} pairs"


def holm(plain: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of the p values of a family, the smallest first."""
    order, corrected = sorted(plain, key=plain.__getitem__), dict[str, float]()
    for rank, name in enumerate(order):
        corrected[name] = min(1.0, max([(len(order) - rank) * plain[name], *corrected.values()]))
    return corrected


def judge(family: Mapping[str, Sequence[float]], pooled: Pooled | None = None) -> dict[str, Verdict]:
    """The verdict on each method of a family that has two pairs or more.

    Args:
        family: Paired differences to the reference, by method.
        pooled: Replaces a deviation of two degrees of freedom or fewer, unless the method's own one is too
            large or too small to be it.
    """
    from scipy.stats import t

    spreads = {name: _spread(of, pooled) for name, of in family.items() if len(of) > 1}
    plain = {name: _two_sided(mean, error, freedom) for name, (mean, error, freedom, _) in spreads.items()}
    corrected, verdicts = holm(plain), {}
    rejected = sum(p < LEVEL for p in corrected.values())
    for rank, name in enumerate(corrected):
        mean, error, freedom, is_pooled = spreads[name]
        half = float(t.isf(LEVEL / (len(corrected) - min(rank, rejected)) / 2, freedom)) * error
        verdicts[name] = Verdict(
            interval=(mean - half, mean + half),
            p=corrected[name],
            p_equivalent=_not_equivalent(mean, error, freedom),
            needed=pairs_needed(error * math.sqrt(len(family[name]))),
            pooled=is_pooled,
        )
    return {name: verdicts[name] for name in spreads}


def pooled_deviation(values: Mapping[str, Mapping[int, float]]) -> Pooled | None:
    """The deviation of a paired difference, pooled over the methods of a task that have the same seeds.

    A value is taken as method + seed + rest. The variance of the rest is the median over methods, as a share of what
    the median of so many degrees of freedom is, so that a method whose seeds fell apart does not widen all others; a
    paired difference has twice that variance. A median is worth EFFICIENCY of a mean's degrees of freedom. None for
    fewer than LEAST methods, or one seed.
    """
    from scipy.stats import chi2

    seeds = max((set(of) for of in values.values()), key=len, default=set())
    complete = [of for of in values.values() if set(of) == seeds]
    freedom = len(seeds) - 1
    if len(complete) < LEAST or freedom < 1:
        return None
    from_mean = [{seed: of[seed] - statistics.fmean(of.values()) for seed in seeds} for of in complete]
    effect = {seed: statistics.median(of[seed] for of in from_mean) for seed in seeds}
    variances = [sum((of[seed] - effect[seed]) ** 2 for seed in seeds) / freedom for of in from_mean]
    variance = statistics.median(variances) / (float(chi2.median(freedom)) / freedom)
    return Pooled(math.sqrt(2 * variance), int(EFFICIENCY * freedom * (len(complete) - 1)))


def pairs_needed(std: float, margin: float = MARGIN, power: float = POWER, level: float = LEVEL) -> int:
    """The fewest pairs with which a two-sided t-test finds a difference of `margin`, if theirs deviate so."""
    from scipy.stats import nct, t

    def found(pairs: int) -> float:
        limit, shift = t.isf(level / 2, pairs - 1), margin * math.sqrt(pairs) / std
        return float(nct.sf(limit, pairs - 1, shift) + nct.cdf(-limit, pairs - 1, shift))

    if std == 0:
        return 2
    low, high = 1, 2
    while high < MOST and found(high) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high


def _spread(differences: Sequence[float], pooled: Pooled | None) -> tuple[float, float, int, bool]:
    """Mean, standard error, its degrees of freedom, and whether it is from the pooled deviation."""
    from scipy.stats import chi2

    count, std = len(differences), statistics.stdev(differences)
    freedom, is_pooled = count - 1, False
    if pooled and pooled.std and freedom <= FEW:
        ratio = freedom * std**2 / pooled.std**2
        is_pooled = bool(min(chi2.sf(ratio, freedom), chi2.cdf(ratio, freedom)) > STRANGE / 2)
        std, freedom = (pooled.std, pooled.freedom) if is_pooled else (std, freedom)
    return statistics.fmean(differences), std / math.sqrt(count), freedom, is_pooled


def _two_sided(mean: float, error: float, freedom: int) -> float:
    from scipy.stats import t

    return float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)


def _not_equivalent(mean: float, error: float, freedom: int) -> float:
    from scipy.stats import t

    if not error:
        return float(abs(mean) >= MARGIN)
    return float(max(t.sf((mean + MARGIN) / error, freedom), t.cdf((mean - MARGIN) / error, freedom)))
