"""What is on the images of each rendered task, and their labels."""

from __future__ import annotations

import numpy as np

from capaboost_core.draws import draw
from capaboost_vision.sources.rendered.raster import FULL_TURN, SIDE, Sprites
from capaboost_vision.vtab import TASKS

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
    return (draw(f"rendered/{key}", shape) % np.asarray(count, np.uint64)).astype(np.int64)


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
    cell = draw(f"rendered/{dataset}/cell", sizes.shape).argsort(axis=1, kind="stable")
    x, y = (
        pitch * place + pitch // 2 + _pick(f"{dataset}/{name}", 2 * room + 1, sizes.shape) - room
        for name, place in (("x", cell % a_side), ("y", cell // a_side))
    )
    image = np.broadcast_to(np.arange(len(number))[:, None], sizes.shape)
    shape, turn, colour = _pick_each(dataset, SCATTERED, sizes.shape)
    return Sprites(image, shape, x, y, sizes, turn, 1 + colour).rows(np.arange(cells) < number[:, None])
