"""What the runs of one choice scored, and which choice is best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.runs import Run

Mean = float | None  # None where a run diverged, or its metric is undefined
LOSS = "_loss"  # ends the name of the loss on the rows for selection, for tasks that give it


def have_ended(folder: SweepFolder, runs: list[Run]) -> bool:
    """Whether each is done, or diverged, which is a result as well; any other failure leaves the choice open."""
    return all(folder.is_done(run) or _diverged(folder, run) for run in runs)


def mean_value(folder: SweepFolder, runs: list[Run]) -> Mean:
    values = [folder.result(run)["value"] if folder.is_done(run) else None for run in runs]
    return None if None in values else statistics.fmean(values)


def mean_loss(folder: SweepFolder, runs: list[Run]) -> Mean:
    """The mean loss on the rows for selection; None where a run has none."""
    metrics = [folder.result(run).get("metrics", {}) if folder.is_done(run) else {} for run in runs]
    losses = [value for each in metrics for name, value in each.items() if name.endswith(LOSS)]
    return statistics.fmean(losses) if len(losses) == len(runs) and None not in losses else None


def best_of(means: Sequence[Mean], losses: Sequence[Mean] | None = None) -> int | None:
    """The place of the highest mean, of equal ones that of the lowest loss, then the first; None if there is none."""
    losses = losses or [None] * len(means)

    def rank(i: int) -> tuple[float, float]:
        return (-math.inf if means[i] is None else means[i], -math.inf if losses[i] is None else -losses[i])

    return None if all(mean is None for mean in means) else max(range(len(means)), key=rank)


def _diverged(folder: SweepFolder, run: Run) -> bool:
    return folder.is_failed(run) and folder.failure(run)["kind"] == "diverged"
