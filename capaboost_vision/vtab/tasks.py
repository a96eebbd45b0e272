"""The 19 tasks of VTAB-1k: builders, splits and label rules (google-research/task_adaptation)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Example = dict[str, Any]
GROUPS = {
    "natural": ("caltech101", "cifar", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"),
    "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": (
        "clevr_count",
        "clevr_dist",
        "dmlab",
        "kitti",
        "dsprites_loc",
        "dsprites_ori",
        "smallnorb_azi",
        "smallnorb_ele",
    ),
}
CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = 3  # types 0, 1, 2: car, van, truck


@dataclass(frozen=True)
class VtabTask:
    """One task.

    Attributes:
        builder: TensorFlow Datasets builder, with its config after a slash.
        version: What task_adaptation asks of the builder (task_adaptation/data/*.py at d7630d3), whose file order
            makes the rows of VTAB-1k; None if any will do.
        num_classes: Number of labels, counted from 0.
        val: Split of the 200 validation images.
        test: Split of the test images; train800 is `train[:800]` in every task.
        label: The label of an example.
        image: The image of an example, (height, width, 3) uint8.
    """

    builder: str
    num_classes: int
    val: str
    test: str = "test"
    version: str | None = None
    label: Callable[[Example], int] = lambda example: int(example["label"])
    image: Callable[[Example], np.ndarray] = lambda example: _rgb(example["image"])

    def splits(self, name: str) -> tuple[str, ...]:
        """The builder's splits that make up train800, val200, train800val200 or test, in order."""
        parts = {"train800": ("train[:800]",), "val200": (self.val,), "test": (self.test,)}
        return parts["train800"] + parts["val200"] if name == "train800val200" else parts[name]


def bin_of(value: float, thresholds: tuple[float, ...]) -> int:
    """The largest i with thresholds[i] < value."""
    return int(np.searchsorted(thresholds, value, side="left")) - 1


def clevr_count(example: Example) -> int:
    """Number of objects, 3 to 10."""
    return len(example["objects"]["pixel_coords"]) - 3


def clevr_dist(example: Example) -> int:
    """Bin of the distance to the closest object."""
    return bin_of(np.min(np.asarray(example["objects"]["pixel_coords"])[:, 2]), CLEVR_DISTANCES)


def kitti(example: Example) -> int:
    """Bin of the distance to the closest vehicle; an image without one is in the last bin."""
    types = np.asarray(example["objects"]["type"])
    depths = np.asarray(example["objects"]["location"]).reshape(-1, 3)[:, 2][types < KITTI_VEHICLES]
    return bin_of(depths.min() if len(depths) else 1000.0, KITTI_DISTANCES)


def _rgb(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _attribute(name: str, divisor: float = 1) -> Callable[[Example], int]:
    return lambda example: int(np.floor(int(example[name]) / divisor))


def _dsprites_image(example: Example) -> np.ndarray:
    return _rgb(example["image"]) * np.uint8(255)


def _tail(count: int) -> str:
    return f"train[{count}:{count + 200}]"


VALIDATION = "validation[:200]"
DSPRITES: dict[str, Any] = {
    "builder": "dsprites",
    "version": "2.*.*",
    "num_classes": 16,
    "val": _tail(589824),
    "test": "train[663552:]",
    "image": _dsprites_image,
}
SMALLNORB: dict[str, Any] = {"builder": "smallnorb", "version": "2.*.*", "val": "test[:200]", "test": "test[50%:]"}

TASKS = {
    "caltech101": VtabTask("caltech101", 102, _tail(2754), version="3.*.*"),
    "cifar": VtabTask("cifar100", 100, _tail(45000), version="3.*.*"),
    "dtd": VtabTask("dtd", 47, VALIDATION, version="3.*.*"),
    "oxford_flowers102": VtabTask("oxford_flowers102", 102, VALIDATION, version="2.*.*"),
    "oxford_iiit_pet": VtabTask("oxford_iiit_pet", 37, _tail(2944), version="3.*.*"),
    "svhn": VtabTask("svhn_cropped", 10, _tail(65931), version="3.*.*"),
    "sun397": VtabTask("sun397/tfds", 397, VALIDATION, version="4.*.*"),
    "patch_camelyon": VtabTask("patch_camelyon", 2, VALIDATION, version="2.*.*"),
    "eurosat": VtabTask("eurosat/rgb", 10, _tail(16200), "train[21600:]", version="2.*.*"),
    "resisc45": VtabTask("resisc45", 45, _tail(18900), "train[25200:]", version="3.*.*"),
    "diabetic_retinopathy": VtabTask("diabetic_retinopathy_detection/btgraham-300", 5, VALIDATION, version="3.*.*"),
    "clevr_count": VtabTask("clevr", 8, _tail(63000), "validation", label=clevr_count, version="3.*.*"),
    "clevr_dist": VtabTask("clevr", 6, _tail(63000), "validation", label=clevr_dist, version="3.*.*"),
    "dmlab": VtabTask("dmlab", 6, VALIDATION, version="2.0.1"),
    "kitti": VtabTask("kitti", 4, VALIDATION, label=kitti, version="3.1.0"),
    "dsprites_loc": VtabTask(**DSPRITES, label=_attribute("label_x_position", 2)),
    "dsprites_ori": VtabTask(**DSPRITES, label=_attribute("label_orientation", 2.5)),
    "smallnorb_azi": VtabTask(num_classes=18, **SMALLNORB, label=_attribute("label_azimuth")),
    "smallnorb_ele": VtabTask(num_classes=9, **SMALLNORB, label=_attribute("label_elevation")),
}
