"""Images that are drawn on the spot: dSprites from its definition, and tasks on coloured shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from capaboost_core.sharing.masks import hash_random
from capaboost_vision.vtab.tasks import TASKS

# Sprites on a canvas of 64 x 64 pixels, in integers only, so that every machine draws the same bytes.


SIDE = 64  # pixels
FULL_TURN = 156  # steps: both dSprites' 39 and quarters of a turn are whole numbers of them
ONE = 4096  # of the sine table, in which no value lies near a half
SINE, COSINE = (
    np.array([round(ONE * wave(2 * math.pi * step / FULL_TURN)) for step in range(FULL_TURN)])
    for wave in (math.sin, math.cos)
)
Inside = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Sprites:
    """One sprite a row, as arrays of integers.

    Attributes:
        image: The image that it is on.
        shape: 0 a square, 1 an ellipse, 2 a heart.
        x, y: Its centre, in half pixels from the upper left corner.
        size: Half the side of the square, in tenths of a pixel; all shapes fit into its circumcircle.
        turn: Clockwise, in steps of 1 / FULL_TURN.
        colour: 1 to 7, bits of red, green and blue.
    """

    image: np.ndarray
    shape: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    turn: np.ndarray
    colour: np.ndarray

    def rows(self, kept: np.ndarray) -> Sprites:
        """The sprites that a boolean array keeps, or those at given indices."""
        return Sprites(**{name: values[kept] for name, values in vars(self).items()})


def paint(sprites: Sprites, images: int, samples: int = 1) -> np.ndarray:
    """The sprites in bright colours on black, (images, 64, 64, 3) uint8.

    A pixel has the colour of a sprite as brightly as the sprite holds its samples x samples points. Sprites must lie
    within the canvas, and no two may share a pixel.
    """
    held = np.zeros((images, SIDE, SIDE, 3), np.uint16)
    points = [2 * i + 1 for i in range(samples)]  # of 2 * samples parts of a pixel
    reaches = 1 + 3 * sprites.size // 20  # pixels, at least the circumcircle's radius
    for (shape, inside), reach in product(enumerate((_in_square, _in_ellipse, _in_heart)), np.unique(reaches)):
        own = sprites.rows((sprites.shape == shape) & (reaches == reach))
        for across, down in product(points, points):
            _count(held, own, inside, np.arange(-reach, reach + 1), samples, across, down)
    return (255 * held // samples**2).astype(np.uint8)


def _count(
    held: np.ndarray, sprites: Sprites, inside: Inside, window: np.ndarray, samples: int, across: int, down: int
) -> None:
    """Add the colours of sprites to the pixels whose point (across, down), in 1 / (2 samples) pixels, they hold.

    Each sprite is tried on a window of pixels around its centre.
    """
    columns, rows = (centre[:, None] // 2 + window for centre in (sprites.x, sprites.y))
    dx = (2 * samples * columns + across - samples * sprites.x[:, None])[:, None, :]
    dy = (2 * samples * rows + down - samples * sprites.y[:, None])[:, :, None]
    sine, cosine, size = (v[:, None, None] for v in (SINE[sprites.turn], COSINE[sprites.turn], sprites.size))
    # Turned back. A tenth of a pixel, the unit of size, is 2 * samples * ONE.
    u, v = 10 * (cosine * dx + sine * dy), 10 * (cosine * dy - sine * dx)
    sprite, row, column = np.nonzero(inside(u, v, 2 * samples * ONE * size))
    bits = sprites.colour[sprite, None] >> np.arange(3) & 1
    held[sprites.image[sprite], rows[sprite, row], columns[sprite, column]] += bits.astype(np.uint16)


def _in_square(u: np.ndarray, v: np.ndarray, half: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) <= half


def _in_ellipse(u: np.ndarray, v: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Semi-axes sqrt(2) and 1 / sqrt(2) of the square's half side."""
    return u**2 + 4 * v**2 <= 2 * half**2


def _in_heart(u: np.ndarray, v: np.ndarray, half: np.ndarray) -> np.ndarray:
    """A square on its tip, with a half disc on each of its upper sides; its centroid is at 0 (within 0.001 half)."""
    v = v - 5 * half // 16
    return (abs(u) + abs(v) <= half) | ((2 * abs(u) - half) ** 2 + (2 * v + half) ** 2 <= 2 * half**2)


# What is on the images of each rendered task, and their labels.


SHAPES, COLOURS, WHITE = 3, 7, 7
DSPRITES = {  # values of each factor
    "label_shape": SHAPES,
    "label_scale": 6,
    "label_orientation": 40,
    "label_x_position": 32,
    "label_y_position": 32,
}
JOINT = {"shape": SHAPES, "scale": 6, "turn": FULL_TURN // 4, "x": 32, "y": 32, "colour": COLOURS}
SCATTERED = {"shape": SHAPES, "turn": FULL_TURN, "colour": COLOURS}
FEWEST, MOST = 3, 10  # shapes on an image, as in CLEVR
DISTANCES = (59, 72, 86, 104, 124, 149, 180)  # each 1.2 times the one before, so that sizes differ by as much
NEARNESS = 3960  # size times distance: half a square's side is 6.6 pixels at distance 60, and 2.2 at 180
RANDOM_CLASSES = 16

Scenes = tuple[Sprites, np.ndarray]  # and the label of each image


def dsprites(dataset: str, images: int) -> Scenes:
    """dSprites (Matthey et al., 2017): a white sprite, its label by VTAB's rule for the dataset.

    Scales go from 0.5 to 1, orientations from 0 to a full turn, both ends included. Neither the size of a sprite of
    scale 1 nor that of a step of position is published: here 22 pixels for the square's side, and one pixel.
    """
    factors = _pick_each(dataset, DSPRITES, (images,))
    rule = TASKS[dataset].label
    labels = [rule(dict(zip(DSPRITES, values, strict=True))) for values in zip(*factors, strict=True)]
    shape, scale, orientation, x, y = factors
    return _one_each(shape, x, y, scale, 4 * orientation % FULL_TURN, np.full(images, WHITE)), np.array(labels)


def shapes_joint(dataset: str, images: int) -> Scenes:
    """One sprite; its label says which of 8 columns, of 4 orientations within a quarter turn, and of 3 shapes."""
    shape, scale, turn, x, y, colour = _pick_each(dataset, JOINT, (images,))
    labels = (x // 4 * 4 + turn * 16 // FULL_TURN) * SHAPES + shape
    return _one_each(shape, x, y, scale, turn, 1 + colour), labels


def shapes_count(dataset: str, images: int) -> Scenes:
    """3 to 10 sprites of any size; the label is how many, less 3: VTAB's rule for clevr_count."""
    labels = _pick(f"{dataset}/number", MOST - FEWEST + 1, (images,))
    sizes = 20 + _pick(f"{dataset}/size", 25, (images, 16))
    return _scattered(dataset, FEWEST + labels, sizes), labels


def shapes_dist(dataset: str, images: int) -> Scenes:
    """3 to 9 sprites, smaller the farther away; the label is the bin of the nearest one's distance.

    As in VTAB's clevr_dist it is the largest i with DISTANCES[i] < distance.
    """
    edges, labels = np.array(DISTANCES), _pick(f"{dataset}/bin", 6, (images,))
    nearest = 1 + edges[labels] + _pick(f"{dataset}/nearest", np.diff(edges)[labels], (images,))
    farther = _pick(f"{dataset}/farther", 1 + edges[-1] - nearest[:, None], (images, 9))
    farther[:, 0] = 0
    number = FEWEST + _pick(f"{dataset}/number", 7, (images,))
    return _scattered(dataset, number, NEARNESS // (nearest[:, None] + farther)), labels


def random_labels(dataset: str, images: int) -> Scenes:
    """The scenes of shapes_count, and labels that have nothing to do with them (Zhang et al., 2017)."""
    return shapes_count(dataset, images)[0], _pick(f"{dataset}/label", RANDOM_CLASSES, (images,))


def _pick(key: str, count: int | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers from 0 to below `count`, uniform to 1 in 2^50."""
    return (hash_random(f"rendered/{key}", shape) % np.asarray(count, np.uint64)).astype(np.int64)


def _pick_each(dataset: str, counts: dict[str, int], shape: tuple[int, ...]) -> list[np.ndarray]:
    return [_pick(f"{dataset}/{name}", count, shape) for name, count in counts.items()]


def _one_each(
    shape: np.ndarray, x: np.ndarray, y: np.ndarray, scale: np.ndarray, turn: np.ndarray, colour: np.ndarray
) -> Sprites:
    """A sprite an image, at one of 32 x 32 places in steps of a pixel, of one of dSprites' six scales."""
    x, y = (2 * (16 + place) + 1 for place in (x, y))
    return Sprites(np.arange(len(shape)), shape, x, y, 11 * (5 + scale), turn, colour)


def _scattered(dataset: str, number: np.ndarray, sizes: np.ndarray) -> Sprites:
    """The first `number` of a row of sizes (images, cells), each somewhere in a cell of its own of a square grid.

    Sprites keep a pixel's distance from the edges of their cells, so they never touch.
    """
    cells = sizes.shape[1]
    a_side = round(cells**0.5)
    pitch = 2 * SIDE // a_side  # half pixels
    room = pitch // 2 - 2 - 3 * sizes // 10
    cell = hash_random(f"rendered/{dataset}/cell", sizes.shape).argsort(axis=1, kind="stable")
    x, y = (
        pitch * place + pitch // 2 + _pick(f"{dataset}/{name}", 2 * room + 1, sizes.shape) - room
        for name, place in (("x", cell % a_side), ("y", cell // a_side))
    )
    image = np.broadcast_to(np.arange(len(number))[:, None], sizes.shape)
    shape, turn, colour = _pick_each(dataset, SCATTERED, sizes.shape)
    return Sprites(image, shape, x, y, sizes, turn, 1 + colour).rows(np.arange(cells) < number[:, None])


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
    scenes: Callable[[str, int], Scenes]
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
RENDERED = {
    "dsprites_loc": RenderedTask(16, dsprites, DEFINED, samples=1),
    "dsprites_ori": RenderedTask(16, dsprites, DEFINED, samples=1),
    "shapes_count": RenderedTask(8, shapes_count),
    "shapes_dist": RenderedTask(6, shapes_dist),
    "shapes_joint": RenderedTask(96, shapes_joint),
    "random_labels": RenderedTask(
        RANDOM_CLASSES,
        random_labels,
        "rendered here, labels at random; trained and tested on the same 800 rows",
        memorised=800,
    ),
    "random_labels_3k": RenderedTask(  # more than a few entries can hold
        RANDOM_CLASSES,
        random_labels,
        "rendered here, labels at random; trained and tested on the same 3,000 rows",
        memorised=3000,
        name="random_labels",
    ),
}


class Rendered:
    """One split of a rendered task; no image is in two splits, but where memorising is the task."""

    def __init__(self, dataset: str, split: str, selection: int = SELECTION):
        task = RENDERED[dataset]
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
    task, candidates = RENDERED[dataset], count + count // ROWS * SPARE * (count // ROWS)
    sprites, labels = task.scenes(task.name or dataset, candidates)
    images, first = paint(sprites, candidates, task.samples), {}
    for index, image in enumerate(images):
        first.setdefault(image.tobytes(), index)
    rows = list(first.values())[:count]
    return images[rows], labels[rows]
