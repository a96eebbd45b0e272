"""Interleaved timing: every repeat runs each peer once, in a random order whose seed is recorded."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

BLOCK_SECONDS = 0.2


@dataclass(frozen=True)
class Repeats:
    """How often to measure: `warmups` discarded rounds, then `repeats`, within `minutes`."""

    repeats: int
    warmups: int
    seed: int
    minutes: float


@dataclass(frozen=True)
class Pair:
    """The ratio of two peers, `of` over `to`, and the bounds that it should keep; None is no bound.

    `figure` names one of their details, such as `file_bytes`, where it is not the measured value.
    """

    of: str
    to: str
    low: float | None = None
    high: float | None = None
    figure: str | None = None


class Stopwatch:
    """Mean seconds of a call, over as many calls in a row as fill 0.2 seconds.

    The number of calls is found while warming up, and a call returns only when the device is done.
    """

    def __init__(self, work: Callable[[], object], device: torch.device):
        self.work, self.device, self.calls = work, device, 1

    def __call__(self) -> float:
        gc.collect()
        gc.disable()
        try:
            self._wait()
            begun = time.perf_counter()
            for _ in range(self.calls):
                self.work()
            self._wait()
            seconds = (time.perf_counter() - begun) / self.calls
        finally:
            gc.enable()
        self.calls = max(self.calls, math.ceil(BLOCK_SECONDS / max(seconds, 1e-6)))
        return seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def interleave(measures: Mapping[str, Callable[[], float]], plan: Repeats) -> dict[str, list[float]]:
    """Values of each measure, in the order of the repeats.

    No repeat is started that would exceed the time limit if it took as long as the longest so far; one always runs.
    """
    shuffle, begun, longest = random.Random(plan.seed), time.monotonic(), 0.0
    values: dict[str, list[float]] = {name: [] for name in measures}
    with tqdm(total=(plan.warmups + plan.repeats) * len(measures), unit=" runs", dynamic_ncols=True) as bar:
        for repeat in range(-plan.warmups, plan.repeats):
            start = time.monotonic()
            if repeat > 0 and start - begun + longest > 60 * plan.minutes:
                break
            for name in shuffle.sample(list(measures), len(measures)):
                bar.set_description(f"{'warm-up' if repeat < 0 else f'repeat {repeat + 1}/{plan.repeats}'}, {name}")
                value = measures[name]()
                if repeat >= 0:
                    values[name].append(value)
                bar.update()
            longest = max(longest, time.monotonic() - start) if repeat >= 0 else 0.0
    return values


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, the latter by linear interpolation between the values."""
    if len(values) == 1:
        return {"median": values[0], "quartile_1": values[0], "quartile_3": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "quartile_1": low, "quartile_3": high}


def compare(pair: Pair, peers: Mapping[str, Mapping[str, Any]], bounded: bool = True) -> dict[str, Any]:
    """Median and quartiles of the ratios, one ratio for each repeat, so that slow drifts cancel.

    Args:
        pair: What to divide by what.
        peers: The peers' `values` and details by name.
        bounded: Off, the pair's bounds are left out.
    """
    of, to = (peers[name][pair.figure or "values"] for name in (pair.of, pair.to))
    found = spread([a / b for a, b in zip(of, to, strict=True)] if pair.figure is None else [of / to])
    low, high = (pair.low, pair.high) if bounded else (None, None)
    met = None
    if low is not None or high is not None:
        met = (low or -math.inf) <= found["median"] <= (high or math.inf)
    return {"of": pair.of, "to": pair.to, "figure": pair.figure, **found, "low": low, "high": high, "met": met}
