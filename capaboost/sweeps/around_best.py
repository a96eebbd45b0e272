"""More seeds where a map is best: what a sweep's `seeds_at_best` runs."""

from __future__ import annotations

import itertools
import math

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.runs import Run, final_runs
from capaboost.sweeps.scores import best_of, have_ended, mean_value
from capaboost.sweeps.sweep_file import SweepFile


def runs_around_best(sweep: SweepFile, folder: SweepFolder, task: str, method: str) -> list[Run] | None:
    """Runs of `seeds_at_best` at the best combination of `vary`, and at all that are at most one value of each
    setting away from it; None while the map of the other seeds is not whole.
    """
    cells = [(task, method, varied) for varied in sweep.varied]
    of_cells = [final_runs(sweep, cell, {}) for cell in cells]
    if not all(have_ended(folder, runs) for runs in of_cells):
        return None
    best = best_of([mean_value(folder, runs) for runs in of_cells])
    if best is None:
        return []
    places = list(itertools.product(*(range(len(values)) for values in sweep.vary.values())))
    near = [cell for cell, place in zip(cells, places, strict=True) if _distance(place, places[best]) <= 1]
    return [run for cell in near for run in final_runs(sweep, cell, {}, sweep.seeds_at_best)]


def most_around_best(sweep: SweepFile) -> int:
    """How many runs these are at most, of one task and method."""
    return len(sweep.seeds_at_best) * math.prod(min(3, len(values)) for values in sweep.vary.values())


def _distance(place: tuple[int, ...], other: tuple[int, ...]) -> int:
    return max(abs(i - j) for i, j in zip(place, other, strict=True))
