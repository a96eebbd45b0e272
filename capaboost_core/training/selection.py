"""The choice of the epoch whose weights a run ends with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


class Selection:
    """Keeps what the first best epoch had, or the last one.

    Args:
        metric: The one that decides, the higher the better; without one, nothing is kept.
        last: Keep the last epoch, whatever its metric.
    """

    def __init__(self, metric: str | None, last: bool = False):
        self.metric, self.last = metric, last
        self.best: dict[str, Any] | None = None

    def offer(self, metrics: dict[str, float], weights: Callable[[], dict[str, Any]]) -> None:
        """Keep an epoch's metrics and weights if it is better; a metric that is not a number is worse than any."""
        if not self.metric:
            return
        value = float(metrics[self.metric])
        before = self.best["value"] if self.best else None
        if self.last or before is None or value > before or math.isnan(before) > math.isnan(value):
            self.best = {"value": value, "metrics": metrics, **weights()}
