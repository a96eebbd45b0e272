"""Where a task's images come from: TensorFlow Datasets, one's own files, the embedded digits, or drawn on the spot."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from capaboost_core.errors import UserError
from capaboost_vision.sources import digits, folder, rendered, tfds
from capaboost_vision.sources.own import OwnSplit, read_own
from capaboost_vision.sources.pixels import to_rgb
from capaboost_vision.vtab import TASKS

SOURCES = ("tfds", "folder", "images", "digits", "rendered")
SPLITS = ("train800", "val200", "train800val200", "test")


class ResizedImages(Dataset):
    """Items (uint8 3 x H x W, label) of a reader, resized directly with bicubic interpolation.

    Args:
        reader: Has a length; its items are (PIL image or array, label).
        size: (height, width) in pixels, or one number for both.
        num_classes: Labels from 0 to below this are right; None checks nothing.
    """

    def __init__(self, reader, size: tuple[int, int] | int, num_classes: int | None):
        self.reader, self.num_classes = reader, num_classes
        self.height, self.width = (size, size) if isinstance(size, int) else size

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def labels(self) -> list[int] | None:
        """All labels, where the reader knows them without reading the images."""
        return getattr(self.reader, "labels", None)

    @property
    def note(self) -> str | None:
        """Which rows these are, where the reader knows more than its kind."""
        return getattr(self.reader, "note", None)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of the data before training."""
        return getattr(self.reader, "remarks", ())

    @property
    def turned(self) -> int:
        """How many images are turned or mirrored as their EXIF says."""
        return getattr(self.reader, "turned", 0)

    def check(self) -> int:
        """Decode every image of a reader of files, which may be damaged; how many of them are turned.

        Raises:
            UserError: It names the first that cannot be read.
        """
        return self.reader.check() if hasattr(self.reader, "check") else 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.reader[index]
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise UserError(f"image {index} has label {label}, but there are {self.num_classes} classes")
        try:
            image = to_rgb(image)
        except UserError as error:
            raise UserError(f"image {index} {error}") from error
        image = image.resize((self.width, self.height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), label


def open_split(
    dataset: str,
    source: str,
    data_dir: str | Path | None,
    split: str,
    image_size: tuple[int, int] | int,
    selection_rows: int | None = None,
    holdout: float = 0.2,
    split_seed: int = 0,
) -> ResizedImages:
    """One split of a task: items (uint8 3 x H x W, label).

    Args:
        dataset: A VTAB-1k task, `digits`, a rendered task, or with the folder source the name of any folder.
        source: `tfds`, `folder`, `images`, `digits` or `rendered`.
        data_dir: Where the source looks; None is tfds's own default.
        split: `train800`, `val200`, `train800val200` or `test`.
        image_size: (height, width), or one number for both.
        selection_rows: Of val200 of a rendered task, in place of 200.
        holdout: Share of each class that is held out of images of one's own.
        split_seed: Of that share.

    Raises:
        UserError: If the task is unknown, its files are missing or wrong, or its data cannot be prepared.
    """
    check(dataset, source, data_dir)
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; type one of {', '.join(SPLITS)}")
    if source == "digits":
        return ResizedImages(digits.Digits(split), image_size, digits.NUM_CLASSES)
    if source == "rendered":
        drawn = rendered.Rendered(dataset, split, selection_rows or rendered.SELECTION)
        return ResizedImages(drawn, image_size, rendered.TASKS[dataset].num_classes)
    if source == "folder":
        return ResizedImages(folder.Folder(Path(data_dir), dataset, split), image_size, None)
    if source == "images":
        images = read_own(Path(data_dir), holdout, split_seed)
        return ResizedImages(OwnSplit(images, images.rows(split, holdout, split_seed)), image_size, None)
    task = TASKS[dataset]
    return ResizedImages(tfds.TfdsSplit(task, split, data_dir), image_size, task.num_classes)


def num_classes(dataset: str, source: str, data_dir: str | Path | None) -> int:
    """The task's number of classes; of a folder with a name of its own, one more than its largest label.

    Raises:
        UserError: As `open_split`, or if such a folder has no training image of a class below its largest label.
    """
    check(dataset, source, data_dir)
    if source == "digits":
        return digits.NUM_CLASSES
    if source == "rendered":
        return rendered.TASKS[dataset].num_classes
    if source == "images":
        return len(class_names(source, data_dir))
    if dataset in TASKS:
        return TASKS[dataset].num_classes
    training = folder.Folder(Path(data_dir), dataset, "train800val200")
    labels = set(training.labels)
    count = 1 + max(labels)
    if len(labels) < count:
        gap = next(label for label in range(count) if label not in labels)
        raise UserError(
            f"{training.listing} has label {count - 1}, but no image of class {gap}; number the classes from 0 "
            f"without gaps, or pass --set data.num_classes={count} if a class without images is meant"
        )
    return count


def class_names(source: str, data_dir: str | Path | None) -> tuple[str, ...]:
    """The names of the classes in the order of the labels, where the source has names; else none.

    Raises:
        UserError: As `open_split`.
    """
    return read_own(Path(data_dir), 0.2, 0).classes if source == "images" else ()


def decode(dataset: Dataset, description: str) -> tuple[Tensor, Tensor]:
    """All images of a dataset as uint8 (N, 3, H, W) and their labels (N), with a progress bar.

    They are written into one tensor, so that they are in memory once.
    """
    bar = tqdm(range(len(dataset)), description, leave=False, disable=None)  # None: shown on a terminal only
    images, labels = torch.empty(0), torch.empty(len(dataset), dtype=torch.int64)
    for i in bar:
        image, labels[i] = dataset[i]
        if i == 0:
            images = torch.empty((len(dataset), *image.shape), dtype=torch.uint8)
        images[i] = image
    return images, labels


def check(dataset: str, source: str, data_dir: str | Path | None) -> None:
    """Refuse a task that the source does not have.

    Raises:
        UserError: With the names that come close.
    """
    if source not in SOURCES:
        raise UserError(f"there is no source {source!r}; type one of {', '.join(SOURCES)}")
    if source == "digits" and dataset != "digits":
        raise UserError(f"source digits has the dataset digits only, not {dataset!r}; pass --dataset digits")
    if source == "rendered" and dataset not in rendered.TASKS:
        raise UserError(f"source rendered has no task {dataset!r}; type one of {', '.join(rendered.TASKS)}")
    if source == "rendered" and data_dir is not None:
        raise UserError("source rendered draws its images and reads no folder; drop --data-dir")
    if source == "images" and data_dir is None:
        raise UserError("source images needs --data: a folder of class folders, or a CSV file of paths and labels")
    if source == "folder" and data_dir is None:
        raise UserError("source folder needs --data-dir: the folder that holds one folder for each task")
    if source == "tfds" and dataset not in TASKS:
        close = difflib.get_close_matches(dataset, TASKS, n=3) or list(TASKS)
        raise UserError(
            f"VTAB-1k has no task {dataset!r}; type one of {', '.join(close)}, or --data FOLDER for images of your own"
        )
