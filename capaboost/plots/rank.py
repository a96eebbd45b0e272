"""Plots of rank reports: spectra, rank against parameters, and the draws of Theorem 3.1."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from capaboost.plots.style import COLORS, INK, MARKERS, QUIET, label

Report = dict[str, Any]


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
    label(panel, _name(row["num_tied"]), index[-1], median[-1], color, **place)


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


def _width_line(panel: Axes, rows: list[Report]) -> None:
    """The rank that no increment exceeds, where one would have."""
    for width in {min(row["increments"][0]["shape"]) for row in rows if _is_full(row)}:
        panel.axhline(width, color=QUIET, linewidth=1, linestyle=":", zorder=1)
        label(panel, f"width {width}", min(row["parameter_factor"] for row in rows), width, QUIET, (0, 7), fontsize=8)


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


def _mean_rank(row: Report) -> float:
    return sum(int(rank) * draws for rank, draws in row["ranks"].items()) / row["draws"]


def _name(num_tied: int) -> str:
    return "LoRA" if num_tied == 1 else f"d = {num_tied}"
