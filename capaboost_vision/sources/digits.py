"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels that need no download."""

from __future__ import annotations

import numpy as np

NUM_CLASSES = 10
BOUNDS = {"train800": (0, 800), "val200": (800, 1000), "train800val200": (0, 1000), "test": (1000, 1797)}


class Digits:
    """One split of a fixed permutation (seed 0): 800, 200 and 797 images."""

    def __init__(self, split: str):
        from sklearn.datasets import load_digits  # takes seconds to import, which other sources need not wait for

        bunch = load_digits()
        rows = np.random.default_rng(0).permutation(len(bunch.target))[slice(*BOUNDS[split])]
        grey = np.round(bunch.images[rows] * (255 / 16)).astype(np.uint8)
        self.images, self.labels = np.repeat(grey[..., None], 3, axis=-1), bunch.target[rows].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], self.labels[index]
