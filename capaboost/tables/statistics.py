"""Mean and deviation over seeds, and the paired difference of two methods with its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
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
