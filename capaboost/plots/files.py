"""Figures as files: PNG and SVG, with the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from capaboost_core.files import write_atomically

METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}


def image_files(stem: Path) -> list[Path]:
    """The files of a figure: the stem with each suffix."""
    return [stem.with_name(f"{stem.name}.{suffix}") for suffix in METADATA]


def write_figure(figure: Figure, stem: Path) -> Iterator[Path]:
    """Write the figure in each format, and name each file when it is there."""
    for path, (suffix, metadata) in zip(image_files(stem), METADATA.items(), strict=True):
        write_atomically(path, partial(figure.savefig, format=suffix, metadata=metadata))
        yield path
