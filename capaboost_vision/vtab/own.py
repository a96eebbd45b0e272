"""Images of one's own as people have them: a folder for each class, train/ and val/ above them, or a table.

```
photos/cat/1.jpg                  photos/train/cat/1.jpg            a CSV or TSV file with a header:
photos/dog/2.jpg                  photos/val/cat/7.jpg              path,label[,split]
                                  photos/test/dog/9.jpg (optional)  cat/1.jpg,cat,train
```

Images of a class may lie in folders below it. Names that begin with a dot and files that are no images are left out.
"""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from capaboost_core.errors import UserError, shown
from capaboost_core.sharing.masks import hash_random
from capaboost_vision.vtab.pixels import ImageFiles

TRAIN, VAL, TEST = "train", "val", "test"
SPLIT_NAMES = {TRAIN: TRAIN, "training": TRAIN, VAL: VAL, "valid": VAL, "validation": VAL, TEST: TEST}
PATH_COLUMNS, LABEL_COLUMNS = ("path", "image", "file", "filename", "file_name"), ("label", "class", "category")
TABLE_ENDINGS = (".csv", ".tsv")
LAYOUT = "give a folder with a folder of images for each class, or a CSV file with the columns path and label"
MOST_NAMED = 3
_LISTED: ContextVar[dict[tuple[Path, float, int], OwnImages] | None] = ContextVar("listed", default=None)


class ListedImage(NamedTuple):
    """An image with its class, and its split where the data name one."""

    path: Path
    label: str
    split: str | None


@dataclass(frozen=True)
class OwnImages:
    """A data set of one's own, split.

    Attributes:
        root: The folder or the table.
        classes: Names in alphabetical order; a label is an index of it.
        splits: Paths and labels of `train`, of `test` (what measures: the rows given for it, or else the validation
            rows, or else a share held out), and of `val` where rows are given for it beside `test`.
        note: Which rows these are.
        remarks: What a user should know of the data before training.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[tuple[Path, int]]]
    note: str
    remarks: tuple[str, ...] = ()

    def rows(self, split: str, share: float, seed: int) -> list[tuple[Path, int]]:
        """The rows of one of the four splits of a VTAB-like run.

        Args:
            split: `train800val200` is everything that trains, `train800` without the rows that select, which are
                `val200`; `test` measures.
            share: Share of each class's training rows that selects where no rows are given for it.
            seed: Of that share.
        """
        train, val = self.splits[TRAIN], self.splits.get(VAL)
        if split == TEST:
            return self.splits[TEST]
        if split == "train800val200":
            return train + (val or [])
        if val is None:
            train, val = _hold_out(train, share, f"{seed}/select", self.root)
        return train if split == "train800" else val


class OwnSplit(ImageFiles):
    """A split of them as a reader: items are (RGB image, label)."""

    def __init__(self, images: OwnImages, rows: Sequence[tuple[Path, int]]):
        self.files, self.note, self.remarks = rows, images.note, images.remarks

    @property
    def labels(self) -> list[int]:
        return [label for _, label in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> tuple[Path, str, int]:
        path, label = self.files[index]
        return path, str(path), label


@contextmanager
def listed_once() -> Iterator[None]:
    """Within it, in this thread, `read_own` lists a folder once for all splits: it must not change meanwhile."""
    token = _LISTED.set({})
    try:
        yield
    finally:
        _LISTED.reset(token)


def read_own(root: Path, share: float, seed: int) -> OwnImages:
    """Read the layout, check it and split it.

    Without rows to measure on, round(share * n) of the n images of each class are held out, at least one where n > 1:
    those with the smallest hash of (seed, path), so that the split is the same on every machine, and adding images
    moves no other.

    Raises:
        UserError: If there are no images, a class has none, or fewer than two classes train.
    """
    listed, key = _LISTED.get(), (root, share, seed)
    if listed is None:
        return _split(root, share, seed)
    if key not in listed:
        listed[key] = _split(root, share, seed)
    return listed[key]


def _split(root: Path, share: float, seed: int) -> OwnImages:
    rows, remarks = (_of_table(root), []) if root.is_file() else _of_folders(root)
    given = {row.split for row in rows if row.split}
    by_split = {split: [row for row in rows if (row.split or TRAIN) == split] for split in (TRAIN, VAL, TEST)}
    classes = tuple(sorted({row.label for row in by_split[TRAIN]}))
    _check_classes(root, classes, rows)
    indexed = {
        split: [(row.path, classes.index(row.label)) for row in part] for split, part in by_split.items() if part
    }
    if TEST not in indexed and VAL in indexed:
        indexed[TEST] = indexed.pop(VAL)
    note = "rows that the data name " + ", ".join(sorted(given))
    if TEST not in indexed:
        indexed[TRAIN], indexed[TEST] = _hold_out(indexed[TRAIN], share, str(seed), root)
        note = f"own images; {share:.0%} of each class held out by seed {seed}, on which the value is measured"
    counts = ", ".join(f"{len(part):,} {split}" for split, part in indexed.items())
    return OwnImages(root, classes, indexed, f"{note}; {counts}", (*remarks, *_remarks(classes, indexed[TRAIN])))


def _check_classes(root: Path, classes: Sequence[str], rows: Sequence[ListedImage]) -> None:
    if len(classes) < 2:
        found = f"images of one class, {shown(classes[0])}," if classes else "no images to train on"
        raise UserError(f"{root} holds {found} but two classes or more are needed; {LAYOUT}")
    unknown = sorted({row.label for row in rows} - set(classes))
    if unknown:
        raise UserError(
            f"{root}: class {shown(unknown[0])} has images to measure but none to train; add some, or remove it"
        )


def _remarks(classes: Sequence[str], train: Sequence[tuple[Path, int]]) -> list[str]:
    counts = Counter(label for _, label in train)
    single = [classes[label] for label, count in sorted(counts.items()) if count == 1]
    return [f"{_some(single)} with one training image only"] if single else []


def _hold_out(
    rows: Sequence[tuple[Path, int]], share: float, key: str, root: Path
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """The rows that stay, and those held out of each class, each in the given order."""
    of_class = defaultdict(list)
    for row in rows:
        of_class[row[1]].append(row)
    out = set()
    for members in of_class.values():
        count = min(len(members) - 1, max(1, round(share * len(members))))
        ranked = sorted(members, key=lambda row: _hash(key, row[0], root))
        out.update(ranked[:count])
    return [row for row in rows if row not in out], [row for row in rows if row in out]


def _hash(key: str, path: Path, root: Path) -> int:
    base = root if root.is_dir() else root.parent
    name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
    return int(hash_random(f"{key}/{name}", (1,))[0])


def _of_folders(root: Path) -> tuple[list[ListedImage], list[str]]:
    if not root.is_dir():
        raise UserError(f"there is no {root}; {LAYOUT}")
    below = _folders(root)
    splits = [folder for folder in below if folder.name.lower() in SPLIT_NAMES]
    if not any(SPLIT_NAMES[folder.name.lower()] == TRAIN for folder in splits):
        return _of_classes(root, None)
    others = [folder.name for folder in below if folder not in splits]
    rows, remarks = [], [f"{_some(others)} beside train/ left out"] if others else []
    for folder in splits:
        more, said = _of_classes(folder, SPLIT_NAMES[folder.name.lower()])
        rows, remarks = rows + more, remarks + said
    return rows, remarks


def _of_classes(root: Path, split: str | None) -> tuple[list[ListedImage], list[str]]:
    loose = [path for path in _files(root) if is_image(path)]
    if loose:
        raise UserError(f"{root} holds images in no class, such as {shown(loose[0].name)}; {LAYOUT}")
    rows, others = [], []
    for folder in _folders(root):
        files = [Path(at, name) for at, names in _walk(folder) for name in names]
        images = [path for path in files if is_image(path)]
        if not images:
            raise UserError(f"{folder} holds no image; add some, or remove the folder")
        others += [path.name for path in files if not is_image(path)]
        rows += [ListedImage(path, folder.name, split) for path in images]
    if not rows:
        raise UserError(f"{root} holds no folders of images; {LAYOUT}")
    return rows, [f"{_some(others)} left out: no image by the ending"] if others else []


def _walk(folder: Path) -> Iterable[tuple[str, list[str]]]:
    """Folders below one and their files in alphabetical order, links followed once, hidden names left out."""
    seen = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            seen.add(real)
            yield at, sorted(name for name in names if not name.startswith("."))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))


def is_image(path: Path) -> bool:
    """Whether the ending is that of an image which can be read."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def _of_table(file: Path) -> list[ListedImage]:
    """The rows of a CSV or TSV file, whose paths are relative to its folder."""
    if file.suffix.lower() not in TABLE_ENDINGS:
        raise UserError(f"{file} is neither a folder nor a table ({' or '.join(TABLE_ENDINGS)}); {LAYOUT}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = list(csv.reader(opened, delimiter="\t" if file.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not readable as a table; save it as CSV in UTF-8") from error
    header = [name.strip().lower() for name in lines[0]] if lines else []
    path, label = (_column(file, header, names) for names in (PATH_COLUMNS, LABEL_COLUMNS))
    split = header.index("split") if "split" in header else None
    rows = [_row(file, number, cells, path, label, split) for number, cells in enumerate(lines[1:], 2) if cells]
    if not rows:
        raise UserError(f"{file} lists no image; {LAYOUT}")
    return rows


def _column(file: Path, header: Sequence[str], names: Sequence[str]) -> int:
    found = next((name for name in names if name in header), None)
    if found is None:
        raise UserError(f"{file}: no column is called {' or '.join(names)}; its first line must name the columns")
    return list(header).index(found)


def _row(file: Path, number: int, cells: Sequence[str], path: int, label: int, split: int | None) -> ListedImage:
    where = f"{file}, line {number}"
    if len(cells) <= max(path, label, split or 0):
        raise UserError(f"{where} has {len(cells)} columns, fewer than its first line; correct it")
    image, name = file.parent / cells[path].strip(), cells[label].strip()
    if not name:
        raise UserError(f"{where} has no label; fill it in, or remove the line")
    if not image.is_file():
        raise UserError(f"{where}: there is no image {shown(str(image))}; paths are relative to the table's folder")
    given = cells[split].strip().lower() if split is not None else ""
    if given and given not in SPLIT_NAMES:
        raise UserError(f"{where}: split is {shown(given)}; type train, val or test, or leave it empty")
    return ListedImage(image, name, SPLIT_NAMES.get(given))


def _some(names: Sequence[str]) -> str:
    """The first few names and how many there are more."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(shown(name) for name in names[:MOST_NAMED]) + more
