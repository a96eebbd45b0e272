"""Plot of a benchmark: the time of each peer over that of the frozen model."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from plot_style import COLORS, INK, QUIET, label

Report = dict[str, Any]
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


def _title(report: Report) -> str:
    settings = report["settings"]
    allocator = ", allocator told to keep memory" if report["allocator"] else ""
    what = f"{settings['model']}, batch {settings['batch']}, {settings['precision']}, {settings['mode']}"
    return f"{what}\n{report['device']}{allocator}"
