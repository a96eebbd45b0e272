"""Where a task's images come from: TensorFlow Datasets, one's own files, the embedded digits, or drawn on the spot."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from capaboost_core.errors import UserError, shown
from capaboost_vision.vtab import rendered
from capaboost_vision.vtab.own import OwnSplit, read_own
from capaboost_vision.vtab.pixels import ImageFiles, to_rgb
from capaboost_vision.vtab.tasks import TASKS
from capaboost_vision.vtab.tfds import TfdsSplit

DIGITS_CLASSES = 10
DIGITS_BOUNDS = {"train800": (0, 800), "val200": (800, 1000), "train800val200": (0, 1000), "test": (1000, 1797)}


class Digits:
    """One split of scikit-learn's 1,797 handwritten digits, grey images of 8 x 8 pixels that need no download.

    A fixed permutation (seed 0) has 800 images to train, 200 to select and 797 to test on.
    """

    def __init__(self, split: str):
        from sklearn.datasets import load_digits  # takes seconds to import, which other sources need not wait for

        bunch: Any = load_digits()
        rows = np.random.default_rng(0).permutation(len(bunch.target))[slice(*DIGITS_BOUNDS[split])]
        grey = np.round(bunch.images[rows] * (255 / 16)).astype(np.uint8)
        self.images, self.labels = np.repeat(grey[..., None], 3, axis=-1), bunch.target[rows].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], self.labels[index]


LISTED_LINE = re.compile(r"(?P<path>.+) (?P<label>[0-9]{1,9})")
LINE_FORM = "`relative/path label`, such as `images/a.jpg 3`"


class Folder(ImageFiles):
    """A split of DATA_DIR/<task> in the VTAB-1k layout: a text file a split, a line `relative/path label` an image.

    The complete list is read and checked on opening. A path may lead out of the folder, as where tasks share images.

    Raises:
        UserError: If the folder, the list or an image is missing, or a line or label is wrong.
    """

    def __init__(self, data_dir: Path, dataset: str, split: str):
        self.root = data_dir / dataset
        if not os.path.isdir(self.root):
            there = (
                sorted(path.name for path in data_dir.glob("*") if path.is_dir()) if os.path.isdir(data_dir) else []
            )
            found = f"it holds {', '.join(there)}" if there else "give the folder that holds the tasks' folders"
            raise UserError(f"{data_dir} has no folder {dataset}; {found}")
        self.listing = self.root / f"{split}.txt"
        if not os.path.isfile(self.listing):
            raise UserError(f"{self.listing} is missing; write one line `relative/path label` for each image")
        limit = TASKS[dataset].num_classes if dataset in TASKS else None
        lines = enumerate(_read(self.listing).split("\n"), start=1)
        self.rows = [self._row(number, line, limit) for number, line in lines if line.strip()]
        if not self.rows:
            raise UserError(f"{self.listing} lists no image; write one line `relative/path label` for each image")

    def _row(self, number: int, line: str, limit: int | None) -> tuple[int, str, int]:
        where, found = f"{self.listing}, line {number}", LISTED_LINE.fullmatch(line)
        if not found:
            raise UserError(f"{where}: {shown(line)} is not of the form {LINE_FORM}")
        path, label = found["path"], int(found["label"])
        if limit is not None and label >= limit:
            raise UserError(f"{where}: label {label} is outside 0 to {limit - 1}")
        if not os.path.isfile(self.root / path):
            raise UserError(f"{where}: there is no image {shown(path)} in {self.root}")
        return number, path, label

    @property
    def labels(self) -> list[int]:
        return [label for _, _, label in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> tuple[Path, str, int]:
        number, path, label = self.rows[index]
        return self.root / path, f"{self.listing}, line {number}: {self.root / path}", label


def _read(listing: Path) -> str:
    try:
        return listing.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listing} is not readable as text; write it as UTF-8") from error


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

    def image(self, index: int) -> tuple[Image.Image, int]:
        """An image of its own size and its label."""
        image, label = self.reader[index]
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise UserError(f"image {index} has label {label}, but there are {self.num_classes} classes")
        try:
            return to_rgb(image), label
        except UserError as error:
            raise UserError(f"image {index} {error}") from error

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.image(index)
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
        return ResizedImages(Digits(split), image_size, DIGITS_CLASSES)
    if source == "rendered":
        drawn = rendered.Rendered(dataset, split, selection_rows or rendered.SELECTION)
        return ResizedImages(drawn, image_size, rendered.RENDERED[dataset].num_classes)
    if source == "folder":
        return ResizedImages(Folder(_given(data_dir), dataset, split), image_size, None)
    if source == "images":
        images = read_own(_given(data_dir), holdout, split_seed)
        return ResizedImages(OwnSplit(images, images.rows(split, holdout, split_seed)), image_size, None)
    task = TASKS[dataset]
    return ResizedImages(TfdsSplit(task, split, data_dir), image_size, task.num_classes)


def num_classes(dataset: str, source: str, data_dir: str | Path | None) -> int:
    """The task's number of classes; of a folder with a name of its own, one more than its largest label.

    Raises:
        UserError: As `open_split`, or if such a folder has no training image of a class below its largest label.
    """
    check(dataset, source, data_dir)
    if source == "digits":
        return DIGITS_CLASSES
    if source == "rendered":
        return rendered.RENDERED[dataset].num_classes
    if source == "images":
        return len(class_names(source, data_dir))
    if dataset in TASKS:
        return TASKS[dataset].num_classes
    training = Folder(_given(data_dir), dataset, "train800val200")
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
    return read_own(_given(data_dir), 0.2, 0).classes if source == "images" else ()


def _given(data_dir: str | Path | None) -> Path:
    assert data_dir is not None  # `check` refuses the sources that need one without it
    return Path(data_dir)


def decode(dataset: ResizedImages, description: str) -> tuple[Tensor, Tensor]:
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
    if source == "rendered" and dataset not in rendered.RENDERED:
        raise UserError(f"source rendered has no task {dataset!r}; type one of {', '.join(rendered.RENDERED)}")
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
