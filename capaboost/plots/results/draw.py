"""Every plot that result files hold enough for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from capaboost.outputs import check_outputs
from capaboost.plots.files import image_files, write_figure
from capaboost.plots.results.forest import differences
from capaboost.plots.results.lines import lines
from capaboost.plots.results.panels import Undrawn
from capaboost.plots.results.parameters import parameters
from capaboost.plots.results.scale import scale
from capaboost.plots.style import STYLE
from capaboost.tables.compare import Comparison
from capaboost.tables.groups import Group


def _groups(table: Comparison) -> list[Group]:
    return [cell.group for cell in table.cells.values()]


PLOTS: dict[str, Callable[[Comparison], Figure]] = {
    "parameters": parameters,
    "rank": lambda table: lines(_groups(table), "adapter.r", "r"),
    "modules": lambda table: lines(_groups(table), "adapter.num_tied", "d"),
    "density": lambda table: lines(_groups(table), "adapter.density", "density"),
    "differences": differences,
    "scale": lambda table: scale(_groups(table)),
}


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot hold the plots.

    Raises:
        UserError: If one of the files cannot be written.
    """
    check_outputs("--plots", *(path for name in PLOTS for path in image_files(folder / name)))


def draw_results(table: Comparison, folder: Path) -> Iterator[str]:
    """Write the plots into a folder, each as PNG and SVG.

    Yields:
        The name of each file, or a line that says why a plot is not drawn.
    """
    with matplotlib.rc_context(STYLE):
        for name, plot in PLOTS.items():
            try:
                yield from map(str, write_figure(plot(table), folder / name))
            except Undrawn as why:
                yield f"{name} is not drawn: {why}"
