"""Sprites on a canvas of 64 x 64 pixels, in integers only, so that every machine draws the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

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
