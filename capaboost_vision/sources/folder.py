"""The VTAB-1k folder layout: one text file a split, a line `relative/path label` an image."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from capaboost_core.errors import UserError
from capaboost_vision.vtab import TASKS


class Folder:
    """A split of DATA_DIR/<task>, its list read and checked as a whole.

    Raises:
        UserError: If the folder, the list or an image is missing, or a line or label is wrong.
    """

    def __init__(self, data_dir: Path, dataset: str, split: str):
        self.root = data_dir / dataset
        if not self.root.is_dir():
            there = sorted(path.name for path in data_dir.glob("*") if path.is_dir())
            found = f"it holds {', '.join(there)}" if there else "give the folder that holds the tasks' folders"
            raise UserError(f"{data_dir} has no folder {dataset}; {found}")
        listing = self.root / f"{split}.txt"
        if not listing.is_file():
            raise UserError(f"{listing} is missing; write one line `relative/path label` for each image")
        limit = TASKS[dataset].num_classes if dataset in TASKS else None
        lines = enumerate(_read(listing).splitlines(), start=1)
        self.rows = [self._row(f"{listing}, line {number}", line, limit) for number, line in lines if line.strip()]
        if not self.rows:
            raise UserError(f"{listing} lists no image; write one line `relative/path label` for each image")

    def _row(self, place: str, line: str, limit: int | None) -> tuple[str, int]:
        path, _, label = line.rpartition(" ")
        if not path or not label.isdecimal():
            raise UserError(f"{place}: {line!r} is not of the form `relative/path label`, such as `images/a.jpg 3`")
        if limit is not None and int(label) >= limit:
            raise UserError(f"{place}: label {label} is outside 0 to {limit - 1}")
        if not (self.root / path).is_file():
            raise UserError(f"{place}: there is no image {self.root / path}")
        return path, int(label)

    @property
    def labels(self) -> list[int]:
        return [label for _, label in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.rows[index]
        try:
            return Image.open(self.root / path).convert("RGB"), label
        except (OSError, SyntaxError) as error:  # PIL's for a PNG with a broken chunk
            raise UserError(f"{self.root / path} is no readable image; replace it or drop its line") from error


def _read(listing: Path) -> str:
    try:
        return listing.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listing} is no readable text; write it as UTF-8") from error
