"""The picture of a confusion matrix."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

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
