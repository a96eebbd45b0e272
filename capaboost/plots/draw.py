"""Every plot of the JSON reports in a folder, as PNG and SVG beside its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from capaboost.outputs import check_outputs
from capaboost.plots.benchmarks import parts, peers
from capaboost.plots.files import image_files, write_figure
from capaboost.plots.rank import rank_parameters, spectra, theorem
from capaboost.plots.style import STYLE
from capaboost_core import UserError
from capaboost_core.errors import reason_of, shown

Report = dict[str, Any]
PLOTS: dict[str, Callable[[Report], Figure]] = {
    "spectra": spectra,
    "rank-parameters": rank_parameters,
    "theorem": theorem,
    "peers": peers,
    "parts": parts,
}


def find_reports(folders: list[Path]) -> Iterator[tuple[Path, Report]]:
    """Every JSON file under the folders that names plots.

    Raises:
        UserError: If a file is not JSON, or none has plots.
    """
    found = False
    for path in sorted({path for folder in folders for path in folder.rglob("*.json")}):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is not readable JSON; delete the file or write it again") from error
        if isinstance(report, dict) and report.get("plots"):
            found = True
            yield path, report
    if not found:
        where = ", ".join(map(str, folders))
        raise UserError(
            f"no report with plots under {where}; run `capaboost rank --output FILE.json` or a "
            "benchmark; `capaboost tables DIR --plots DIR` draws results of runs"
        )


def draw(path: Path, report: Report) -> Iterator[Path]:
    """Write the plots of one report, each as PNG and SVG.

    Raises:
        UserError: If a plot is unknown, or the report lacks what it needs; that plot is not written.
    """
    kinds = report["plots"] if isinstance(report["plots"], list) else [report["plots"]]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in PLOTS:
            raise UserError(f"{path} asks for the plot {shown(kind)}; known plots: {', '.join(PLOTS)}")
        check_outputs("the plot", *image_files(path.with_name(f"{path.stem}-{kind}")))
        stem = path.stem if len(kinds) == 1 else f"{path.stem}-{kind}"
        with matplotlib.rc_context(STYLE):
            try:
                figure = PLOTS[kind](report)
            except Exception as error:  # an edited report fails in many ways
                raise UserError(
                    f"{path} lacks what the plot {kind} needs ({reason_of(error)}); write it again"
                ) from error
            yield from write_figure(figure, path.with_name(stem))


def draw_all(folders: list[Path]) -> None:
    """Draw the plots of every report, and name the files."""
    for path, report in find_reports(folders):
        for target in draw(path, report):
            print(target)
