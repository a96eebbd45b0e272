"""Draw every plot of the JSON reports in a folder, from these files alone.

    python tools/make_plots.py results

A report names its plots under the key `plots`. Each becomes a PNG and an SVG beside it, <report>.svg, or
<report>-<plot>.svg where it names several. The same report and version of matplotlib give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from capaboost_core import UserError
from capaboost_core.files import write_atomically

Report = dict[str, Any]
INK, QUIET = "#1f2328", "#57606a"
COLORS = {1: "#57606a", 2: "#8250df", 4: "#d1660a"}
MARKERS = {1: "o", 2: "s", 4: "D"}
# White under everything, so that a plot reads the same on a light and on a dark page.
STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#d0d7de",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#eaeef2",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.hashsalt": "capaboost",
    "svg.fonttype": "path",
}
METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}


def spectra(report: Report) -> Figure:
    """Singular values over the largest by index: a panel for each r, a line for each d."""
    r_values = sorted({row["r"] for row in report["combinations"]})
    figure = Figure(figsize=(3.1 * len(r_values) + 0.9, 3.2), layout="constrained")
    panels = figure.subplots(1, len(r_values), sharey=True, squeeze=False)[0]
    for panel, r in zip(panels, r_values, strict=True):
        for row in (row for row in report["combinations"] if row["r"] == r):
            _spectrum_line(panel, row)
        panel.set(title=f"r = {r}", xlabel="index of the singular value", yscale="log")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0].set_ylabel("singular value / largest\nmedian and range over layers")
    return figure


def _spectrum_line(panel: Axes, row: Report) -> None:
    """Median over the increments, with their range; the line ends where the highest rank does."""
    columns = _relative_values(row["increments"])
    if not columns:  # B = 0: not trained
        return
    index, color = range(1, len(columns) + 1), COLORS.get(row["num_tied"], INK)
    median = [statistics.median(column) for column in columns]
    panel.fill_between(index, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.15, linewidth=0)
    panel.plot(index, median, color=color, marker=MARKERS.get(row["num_tied"]), markevery=[-1])
    place = dict(offset=(7, -4)) if row["num_tied"] == 1 else dict(offset=(0, 11), ha="center")
    _label(panel, _name(row["num_tied"]), index[-1], median[-1], color, **place)


def _relative_values(increments: list[Report]) -> list[list[float]]:
    """For each index up to the highest rank, that singular value over the largest, of all that have it."""
    columns: list[list[float]] = [[] for _ in range(max(increment["rank"] for increment in increments))]
    for increment in increments:
        values = increment["singular_values"]
        for column, value in zip(columns[: increment["rank"]], values, strict=False):
            column.append(value / values[0])
    return columns


def rank_parameters(report: Report) -> Figure:
    """Rank against trainable parameters, as on the right of the paper's Figure 1: a line for each d."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    panel = figure.subplots()
    rows = sorted(report["combinations"], key=lambda row: row["r"])
    for num_tied in sorted({row["num_tied"] for row in rows}):
        line = [row for row in rows if row["num_tied"] == num_tied]
        x = [row["parameter_factor"] for row in line]
        y = [statistics.fmean(increment["rank"] for increment in row["increments"]) for row in line]
        color = COLORS.get(num_tied, INK)
        panel.plot(x, y, color=color, marker=MARKERS.get(num_tied))
        _label(panel, _name(num_tied), x[-1], y[-1], color)
        for row, left, bottom in zip(line, x, y, strict=True):
            _label(panel, f"r = {row['r']}", left, bottom, QUIET, (4, -11), fontsize=8)
    _width_line(panel, rows)
    unit = rows[0]["trainable_parameters"] / rows[0]["parameter_factor"]
    panel.set(
        xlabel=f"trainable parameters / those of LoRA at r = 8 ({unit:,.0f})", ylabel="rank of an increment, mean"
    )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.margins(0.12)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
    return figure


def _width_line(panel: Axes, rows: list[Report]) -> None:
    """The rank that no increment exceeds, where one would have."""
    for width in {min(row["increments"][0]["shape"]) for row in rows if _is_full(row)}:
        panel.axhline(width, color=QUIET, linewidth=1, linestyle=":", zorder=1)
        _label(panel, f"width {width}", min(row["parameter_factor"] for row in rows), width, QUIET, (0, 7), fontsize=8)


def _is_full(row: Report) -> bool:
    return row["increments"][0]["bound"] < row["r"] * row["num_tied"]


def theorem(report: Report) -> Figure:
    """Mean rank over the draws: of independent sums by r, and of tied masked sums by density."""
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    rows, size = report["independent"], report["size"]
    for panel in (left, right):
        panel.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    left.plot([0, size / 2, size], [0, size, size], color="#d0d7de", linewidth=5, solid_joinstyle="round")
    left.plot([row["r"] for row in rows], [_mean_rank(row) for row in rows], "o", color=COLORS[2])
    _label(left, "min(2r, n)", size / 4, size / 2, QUIET, offset=(12, -6))
    left.set(title=f"X + Y, independent, n = {size}", xlabel="r, the rank of X and of Y", ylabel="mean rank")
    for mask, num_tied, name in (("random", 2, "a mask for each copy"), ("same", 1, "one mask for both")):
        line = [row for row in report["masked"] if row["mask"] == mask]
        mean = [_mean_rank(row) for row in line]
        right.plot([row["density"] for row in line], mean, color=COLORS[num_tied], marker=MARKERS[num_tied])
        _label(right, name, 0.5, max(mean), COLORS[num_tied], offset=(0, 11), ha="center")
    r = report["masked_r"]
    right.set(title=f"two tied products of r = {r}, n = {size}", xlabel="density of the masks", ylabel="mean rank")
    right.set_ylim(0, 2 * r * 1.15)
    return figure


def _mean_rank(row: Report) -> float:
    return sum(int(rank) * draws for rank, draws in row["ranks"].items()) / row["draws"]


def _name(num_tied: int) -> str:
    return "LoRA" if num_tied == 1 else f"d = {num_tied}"


def _label(panel: Axes, text: str, x: float, y: float, color: str, offset=(7, 0), **style: Any) -> None:
    outline = [withStroke(linewidth=3, foreground="white")]
    panel.annotate(
        text, (x, y), offset, textcoords="offset points", color=color, va="center", path_effects=outline, **style
    )


PLOTS: dict[str, Callable[[Report], Figure]] = {
    "spectra": spectra,
    "rank-parameters": rank_parameters,
    "theorem": theorem,
}


def find_reports(folders: list[Path]) -> Iterator[tuple[Path, Report]]:
    """Every JSON file under the folders that names plots.

    Raises:
        UserError: If a file is no JSON, or there is none with plots.
    """
    found = False
    for path in sorted({path for folder in folders for path in folder.rglob("*.json")}):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not readable JSON; delete the file or write it again") from error
        if isinstance(report, dict) and report.get("plots"):
            found = True
            yield path, report
    if not found:
        raise UserError(f"no report with plots under {', '.join(map(str, folders))}; run tools/report_rank.py first")


def draw(path: Path, report: Report) -> Iterator[Path]:
    """Write the plots of one report, each as PNG and SVG.

    Raises:
        UserError: If a plot is unknown, or the report lacks what it needs; that plot is not written.
    """
    for kind in report["plots"]:
        if kind not in PLOTS:
            raise UserError(f"{path} asks for the plot {kind!r}; known plots: {', '.join(PLOTS)}")
        stem = path.stem if len(report["plots"]) == 1 else f"{path.stem}-{kind}"
        with matplotlib.rc_context(STYLE):
            try:
                figure = PLOTS[kind](report)
            except (KeyError, TypeError, IndexError, ValueError) as error:
                raise UserError(f"{path} lacks what the plot {kind} needs ({error!r}); write it again") from error
            for suffix, metadata in METADATA.items():
                save = partial(figure.savefig, format=suffix, metadata=metadata)
                write_atomically(path.with_name(f"{stem}.{suffix}"), save)
                yield path.with_name(f"{stem}.{suffix}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("results")], help="default: results")
    try:
        for path, report in find_reports(parser.parse_args(arguments).folders):
            for target in draw(path, report):
                print(target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
