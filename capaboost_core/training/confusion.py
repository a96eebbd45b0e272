"""Who was taken for whom: `confusion.csv` beside the result of a classification."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from capaboost_core.files import write_atomically

CONFUSION = "confusion.csv"


def write_confusion(folder: Path, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """A row for each true class: its name, rows, accuracy in percent, and how many were taken for each class.

    Args:
        folder: The run's.
        classes: Names in the order of the labels.
        counts: (true class, predicted class).
    """
    rows = [["class", "rows", "accuracy", *classes]]
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        rows.append([name, sum(row), f"{100 * row[i] / sum(row):.2f}" if sum(row) else "", *row])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(folder / CONFUSION, lambda file: file.write(text.getvalue().encode()))
