"""How plots look, and how figures are written: PNG and SVG, with the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from capaboost_core.files import write_atomically

INK, QUIET = "#1f2328", "#57606a"
COLORS = {1: "#57606a", 2: "#8250df", 4: "#d1660a"}
MARKERS = {1: "o", 2: "s", 4: "D"}
_HUES = ("#8250df", "#d1660a", "#0969da", "#1a7f37", "#57606a", "#bf3989", "#cf222e", "#9a6700")
SERIES = [(color, "osD^vP"[(turn + number) % 6]) for turn in (0, 3) for number, color in enumerate(_HUES)]
# White under everything, so that a plot reads the same on a light and on a dark page.
STYLE: dict[Any, Any] = {
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


METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}


def image_files(stem: Path) -> list[Path]:
    """The files of a figure: the stem with each suffix."""
    return [stem.with_name(f"{stem.name}.{suffix}") for suffix in METADATA]


def write_figure(figure: Figure, stem: Path) -> Iterator[Path]:
    """Write the figure in each format, and name each file when it is there."""
    for path, (suffix, metadata) in zip(image_files(stem), METADATA.items(), strict=True):
        write_atomically(path, partial(figure.savefig, format=suffix, metadata=metadata))
        yield path
