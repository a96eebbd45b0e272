"""The VTAB-1k folder layout: one text file a split, a line `relative/path label` an image.

A path may lead out of the folder, as where tasks share their images: files are read as images, never written.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from capaboost_core.errors import UserError, shown
from capaboost_vision.sources.pixels import ImageFiles
from capaboost_vision.vtab import TASKS

LINE = re.compile(r"(?P<path>.+) (?P<label>[0-9]{1,9})")
FORM = "`relative/path label`, such as `images/a.jpg 3`"


class Folder(ImageFiles):
    """A split of DATA_DIR/<task>, its list read and checked as a whole.

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
        place, found = f"{self.listing}, line {number}", LINE.fullmatch(line)
        if not found:
            raise UserError(f"{place}: {shown(line)} is not of the form {FORM}")
        path, label = found["path"], int(found["label"])
        if limit is not None and label >= limit:
            raise UserError(f"{place}: label {label} is outside 0 to {limit - 1}")
        if not os.path.isfile(self.root / path):
            raise UserError(f"{place}: there is no image {shown(path)} in {self.root}")
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
