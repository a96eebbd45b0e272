"""Images that are drawn on the spot: dSprites from its definition, and tasks on coloured shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from capaboost_vision.sources.rendered import scenes
from capaboost_vision.sources.rendered.raster import paint

ROWS, CANDIDATES = 3000, 3100  # a few images repeat an earlier one
BOUNDS = {"train800": (0, 800), "val200": (800, 1000), "train800val200": (0, 1000), "test": (1000, ROWS)}
# Only the rows that are trained on can tell what was memorised, with either protocol.
MEMORISED = {"train800": (0, 800), "val200": (0, 200), "train800val200": (0, 800), "test": (0, 800)}


@dataclass(frozen=True)
class RenderedTask:
    """A task.

    Attributes:
        num_classes: Number of labels, counted from 0.
        scenes: Sprites and labels, from the task's name and a number of images.
        note: Which rows these are.
        bounds: The rows of each split.
        samples: Points a side at which a pixel is sampled; 1 makes images of two colours.
    """

    num_classes: int
    scenes: Callable[[str, int], scenes.Scenes]
    note: str = "rendered here, 800/200/2,000 rows"
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=lambda: BOUNDS)
    samples: int = 2


DEFINED = "rendered here from the published definition; not VTAB rows"
TASKS = {
    "dsprites_loc": RenderedTask(16, scenes.dsprites, DEFINED, samples=1),
    "dsprites_ori": RenderedTask(16, scenes.dsprites, DEFINED, samples=1),
    "shapes_count": RenderedTask(8, scenes.shapes_count),
    "shapes_dist": RenderedTask(6, scenes.shapes_dist),
    "shapes_joint": RenderedTask(96, scenes.shapes_joint),
    "random_labels": RenderedTask(
        scenes.RANDOM_CLASSES,
        scenes.random_labels,
        "rendered here, labels at random; trained and tested on the same 800 rows",
        MEMORISED,
    ),
}


class Rendered:
    """One split of a rendered task; no image is in two splits, but where memorising is the task."""

    def __init__(self, dataset: str, split: str):
        task = TASKS[dataset]
        rows = slice(*task.bounds[split])
        images, labels = _distinct(dataset)
        self.note, self.images, self.labels = task.note, images[rows], labels[rows].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], self.labels[index]


@lru_cache(maxsize=1)  # a run opens each split several times
def _distinct(dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a task that repeat none before them, and their labels."""
    task = TASKS[dataset]
    sprites, labels = task.scenes(dataset, CANDIDATES)
    images, first = paint(sprites, CANDIDATES, task.samples), {}
    for index, image in enumerate(images):
        first.setdefault(image.tobytes(), index)
    rows = list(first.values())[:ROWS]
    return images[rows], labels[rows]
