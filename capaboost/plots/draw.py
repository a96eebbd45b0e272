"""Draw the JSON reports of a folder, each plot as PNG and SVG beside its report, and confusion matrices."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from capaboost.console import check_outputs
from capaboost.plots.style import COLORS, INK, MARKERS, QUIET, STYLE, image_files, label, write_figure
from capaboost_core import UserError
from capaboost_core.errors import reason_of, shown

BenchReport = dict[str, Any]
PARTS = {
    "small products at the frozen ones' rate": COLORS[2],
    "what they take beyond that": "#c297ff",
    "masked copies": COLORS[4],
}
REFERENCES = {"floor": "with no adapter", "base": "of the frozen model"}


def peers(report: BenchReport) -> Figure:
    """Median and quartiles of the ratios within a repeat, a row for each peer in the report's order."""
    names = list(report["peers"])
    reference = next((name for name in REFERENCES if name in names), names[0])
    names.remove(reference)
    figure = Figure(figsize=(6.4, 0.32 * len(names) + 1.2), layout="constrained")
    panel = figure.subplots()
    for row, name in enumerate(names):
        times, of_reference = (np.array(report["peers"][peer]["values"]) for peer in (name, reference))
        low, median, high = np.percentile(times / of_reference, [25, 50, 75])
        color = COLORS[2] if name.startswith("capaboost") else COLORS[4] if name.startswith("peft") else QUIET
        panel.plot([low, high], [row, row], color=color, alpha=0.35, linewidth=6, solid_capstyle="butt")
        panel.plot([median], [row], "o", color=color)
        label(panel, f"{median:.3f}", high, row, INK, fontsize=8)
    panel.axvline(1, color=QUIET, linewidth=1, linestyle=":", zorder=1)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(visible=False, axis="y")
    panel.margins(x=0.12)
    of = REFERENCES.get(reference, f"of {reference}")
    panel.set(title=_title(report), xlabel=f"time of {report['benchmark']} / time {of}, median and quartiles")
    return figure


def parts(report: BenchReport) -> Figure:
    """Milliseconds that an adapter's operators add to a step, stacked by part, a row for each peer."""
    peers = report["peers"]
    figure = Figure(figsize=(6.4, 0.38 * len(peers) + 1.6), layout="constrained")
    panel = figure.subplots()
    for row, peer in enumerate(peers.values()):
        small, at_rate, copies = (peer[key] for key in ("small_ms", "small_at_frozen_rate_ms", "copies_ms"))
        edges = np.cumsum([0, at_rate, max(0, small - at_rate), copies])
        for (name, color), start, stop in zip(PARTS.items(), edges[:-1], edges[1:], strict=True):
            panel.barh(row, stop - start, 0.6, start, color=color, label=name if row == 0 else None)
        percent = edges[-1] / peer["median"] / 10
        label(panel, f"{edges[-1]:.0f} ms, {percent:.1f} % of the step", edges[-1], row, INK, fontsize=8)
    panel.set_yticks(range(len(peers)), list(peers))
    panel.set_ylim(len(peers) - 0.5, -0.5)
    panel.grid(visible=False, axis="y")
    panel.margins(x=0.5)  # room for the labels
    panel.set_xlim(left=0)
    panel.set(title=_title(report), xlabel="ms a step")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _title(report: BenchReport) -> str:
    settings = report["settings"]
    allocator = ", allocator told to keep memory" if report["allocator"] else ""
    what = f"{settings['model']}, batch {settings['batch']}, {settings['precision']}, {settings['mode']}"
    return f"{what}\n{report['device']}{allocator}"


MOST_NAMED = 40  # classes with names on the axes
MOST_NUMBERED = 20  # with counts in the cells


def draw_confusion(source: Path, target: Path) -> None:
    """Draw `confusion.csv`: rows are true classes, columns predicted ones, colours shares of the row."""
    with source.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    classes, counts = header[3:], np.array([[int(cell) for cell in row[3:]] for row in rows])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = float(np.clip(2.5 + 0.35 * len(classes), 4, 12))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    right = counts.trace() / max(1, counts.sum())
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{100 * right:.1f} % of {counts.sum():,} right")
    if len(classes) <= MOST_NAMED:
        names = [name if len(name) <= 24 else f"{name[:22]}…" for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
    if len(classes) <= MOST_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(target, dpi=150)


RankReport = dict[str, Any]


def spectra(report: RankReport) -> Figure:
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


def _spectrum_line(panel: Axes, row: RankReport) -> None:
    """Median over the increments, with their range; the line ends where the highest rank does."""
    columns = _relative_values(row["increments"])
    if not columns:  # B = 0: not trained
        return
    index, color = range(1, len(columns) + 1), COLORS.get(row["num_tied"], INK)
    median = [statistics.median(column) for column in columns]
    panel.fill_between(index, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.15, linewidth=0)
    panel.plot(index, median, color=color, marker=MARKERS.get(row["num_tied"]), markevery=[-1])
    options: dict[str, Any] = dict(offset=(7, -4)) if row["num_tied"] == 1 else dict(offset=(0, 11), ha="center")
    label(panel, _name(row["num_tied"]), index[-1], median[-1], color, **options)


def _relative_values(increments: list[RankReport]) -> list[list[float]]:
    """For each index up to the highest rank, that singular value over the largest, of all that have it."""
    columns: list[list[float]] = [[] for _ in range(max(increment["rank"] for increment in increments))]
    for increment in increments:
        values = increment["singular_values"]
        for column, value in zip(columns[: increment["rank"]], values, strict=False):
            column.append(value / values[0])
    return columns


def rank_parameters(report: RankReport) -> Figure:
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
        label(panel, _name(num_tied), x[-1], y[-1], color)
        for row, left, bottom in zip(line, x, y, strict=True):
            label(panel, f"r = {row['r']}", left, bottom, QUIET, (4, -11), fontsize=8)
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


def _width_line(panel: Axes, rows: list[RankReport]) -> None:
    """The rank that no increment exceeds, where one would have."""
    for width in {min(row["increments"][0]["shape"]) for row in rows if _is_full(row)}:
        panel.axhline(width, color=QUIET, linewidth=1, linestyle=":", zorder=1)
        label(panel, f"width {width}", min(row["parameter_factor"] for row in rows), width, QUIET, (0, 7), fontsize=8)


def _is_full(row: RankReport) -> bool:
    return row["increments"][0]["bound"] < row["r"] * row["num_tied"]


def theorem(report: RankReport) -> Figure:
    """Mean rank over the draws: of independent sums by r, and of tied masked sums by density."""
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    rows, size = report["independent"], report["size"]
    for panel in (left, right):
        panel.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    left.plot([0, size / 2, size], [0, size, size], color="#d0d7de", linewidth=5, solid_joinstyle="round")
    left.plot([row["r"] for row in rows], [_mean_rank(row) for row in rows], "o", color=COLORS[2])
    label(left, "min(2r, n)", size / 4, size / 2, QUIET, offset=(12, -6))
    left.set(title=f"X + Y, independent, n = {size}", xlabel="r, the rank of X and of Y", ylabel="mean rank")
    for mask, num_tied, name in (("random", 2, "a mask for each copy"), ("same", 1, "one mask for both")):
        line = [row for row in report["masked"] if row["mask"] == mask]
        mean = [_mean_rank(row) for row in line]
        right.plot([row["density"] for row in line], mean, color=COLORS[num_tied], marker=MARKERS[num_tied])
        label(right, name, 0.5, max(mean), COLORS[num_tied], offset=(0, 11), ha="center")
    r = report["masked_r"]
    right.set(title=f"two tied products of r = {r}, n = {size}", xlabel="density of the masks", ylabel="mean rank")
    right.set_ylim(0, 2 * r * 1.15)
    return figure


def _mean_rank(row: RankReport) -> float:
    return sum(int(rank) * draws for rank, draws in row["ranks"].items()) / row["draws"]


def _name(num_tied: int) -> str:
    return "LoRA" if num_tied == 1 else f"d = {num_tied}"


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
