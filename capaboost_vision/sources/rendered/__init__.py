"""Images that are drawn on the spot: dSprites from its definition, and tasks on coloured shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from capaboost_vision.sources.rendered import scenes
from capaboost_vision.sources.rendered.raster import paint

ROWS, SELECTION = 3000, 200
SPARE = 100  # a few images repeat an earlier one


@dataclass(frozen=True)
class RenderedTask:
    """A task: 800 rows to train on, 200 or more to select on, 2,000 to test on.

    Attributes:
        num_classes: Number of labels, counted from 0.
        scenes: Sprites and labels, from the task's name and a number of images.
        note: Which rows these are; {val} of them select.
        memorised: Only rows that are trained on can tell what was memorised: all splits are of the first so many.
        name: Of its streams of draws, where it shares them with another task.
        samples: Points a side at which a pixel is sampled; 1 makes images of two colours.
    """

    num_classes: int
    scenes: Callable[[str, int], scenes.Scenes]
    note: str = "rendered here, 800/{val:,}/2,000 rows"
    memorised: int = 0
    name: str | None = None
    samples: int = 2

    def rows(self, split: str, selection: int) -> list[int]:
        """The rows of a split. Those for selection beyond 200 come after the rows of the test, and what is trained
        and tested on stays the same.
        """
        if self.memorised:
            return list(range(min(selection, self.memorised) if split == "val200" else self.memorised))
        train, val = list(range(800)), [*range(800, 1000), *range(ROWS, ROWS + selection - SELECTION)][:selection]
        return {"train800": train, "val200": val, "train800val200": [*range(1000)], "test": [*range(1000, ROWS)]}[
            split
        ]


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
        memorised=800,
    ),
    "random_labels_3k": RenderedTask(  # more than a few entries can hold
        scenes.RANDOM_CLASSES,
        scenes.random_labels,
        "rendered here, labels at random; trained and tested on the same 3,000 rows",
        memorised=3000,
        name="random_labels",
    ),
}


class Rendered:
    """One split of a rendered task; no image is in two splits, but where memorising is the task."""

    def __init__(self, dataset: str, split: str, selection: int = SELECTION):
        task = TASKS[dataset]
        rows = task.rows(split, selection)
        images, labels = _distinct(dataset, max(ROWS, ROWS + selection - SELECTION))
        self.note, self.images, self.labels = task.note.format(val=selection), images[rows], labels[rows].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], self.labels[index]


@lru_cache(maxsize=1)  # a run opens each split several times
def _distinct(dataset: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a task that repeat none before them, and their labels.

    Draws come from streams, so that more images change nothing about the first.
    """
    task, candidates = TASKS[dataset], count + count // ROWS * SPARE * (count // ROWS)
    sprites, labels = task.scenes(task.name or dataset, candidates)
    images, first = paint(sprites, candidates, task.samples), {}
    for index, image in enumerate(images):
        first.setdefault(image.tobytes(), index)
    rows = list(first.values())[:count]
    return images[rows], labels[rows]
