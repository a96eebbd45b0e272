"""How plots look: colours, marks and labels."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

INK, QUIET = "#1f2328", "#57606a"
COLORS = {1: "#57606a", 2: "#8250df", 4: "#d1660a"}
MARKERS = {1: "o", 2: "s", 4: "D"}
_HUES = ("#8250df", "#d1660a", "#0969da", "#1a7f37", "#57606a", "#bf3989", "#cf222e", "#9a6700")
SERIES = [(color, "osD^vP"[(turn + number) % 6]) for turn in (0, 3) for number, color in enumerate(_HUES)]
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


def label(panel: Axes, text: str, x: float, y: float, color: str, offset=(7, 0), **style: Any) -> None:
    outline = [withStroke(linewidth=3, foreground="white")]
    panel.annotate(
        text, (x, y), offset, textcoords="offset points", color=color, va="center", path_effects=outline, **style
    )
