"""Plots of the benchmarks: peers over the frozen model, and the parts of a step that an adapter adds."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from capaboost.plots.style import COLORS, INK, QUIET, label

Report = dict[str, Any]
PARTS = {
    "small products at the frozen ones' rate": COLORS[2],
    "what they take beyond that": "#c297ff",
    "masked copies": COLORS[4],
}
REFERENCES = {"floor": "with no adapter", "base": "of the frozen model"}


def peers(report: Report) -> Figure:
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


def parts(report: Report) -> Figure:
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


def _title(report: Report) -> str:
    settings = report["settings"]
    allocator = ", allocator told to keep memory" if report["allocator"] else ""
    what = f"{settings['model']}, batch {settings['batch']}, {settings['precision']}, {settings['mode']}"
    return f"{what}\n{report['device']}{allocator}"
