"""What the runs of one choice scored, and which choice is best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.runs import Run

Mean = float | None  # None where a run diverged, or its metric is undefined


def have_ended(folder: SweepFolder, runs: list[Run]) -> bool:
    """Whether each is done, or diverged, which is a result as well; any other failure leaves the choice open."""
    return all(folder.is_done(run) or _diverged(folder, run) for run in runs)


def mean_value(folder: SweepFolder, runs: list[Run]) -> Mean:
    values = [folder.result(run)["value"] if folder.is_done(run) else None for run in runs]
    return None if None in values else statistics.fmean(values)


def best_of(means: Sequence[Mean]) -> int | None:
    """The place of the highest, of equal ones the first; None where there is none."""
    if all(mean is None for mean in means):
        return None
    return max(range(len(means)), key=lambda i: -math.inf if means[i] is None else means[i])


def _diverged(folder: SweepFolder, run: Run) -> bool:
    return folder.is_failed(run) and folder.failure(run)["kind"] == "diverged"
