"""GLUE's labelled splits, from the original TSV files or from the hub, and the paper's two protocols on them."""

from __future__ import annotations

import math
import os.path
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capaboost_core.errors import UserError, shown
from capaboost_text.encode import Example, halve, permutation
from capaboost_text.glue.tasks import GlueTask, TextTask, find_task
from capaboost_text.hub import load_from_hub
from capaboost_text.table_file import AGAIN, read_rows

HUB = "nyu-mll/glue"
OTHER_SOURCE = "set --data-dir to a folder with the original GLUE folders"


def load_split(task: str, data_dir: str | Path | None, split: str) -> list[Example]:
    """Read a labelled split: `train`, `dev`, and for MNLI `dev_matched` and `dev_mismatched`.

    Raises:
        UserError: If task or split is unknown, the data cannot be had, or a row is malformed; it names
            file and line.
    """
    found = find_task(task)
    check_choice(f"split of {task}", split, tuple(found.splits))
    return _from_hub(found, split) if data_dir is None else _from_tsv(found, Path(data_dir), split)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a UserError that names the setting unless its value is one of the choices."""
    if value not in choices:
        raise UserError(f"{name} is {shown(value)}; type one of: {', '.join(choices)}")


def _from_tsv(task: GlueTask, data_dir: Path, split: str) -> list[Example]:
    folder = data_dir / task.folder
    path = folder / f"{split}.tsv"
    for place in (data_dir, folder, path):
        if not os.path.exists(place):
            raise UserError(
                f"{place} does not exist; put the original GLUE data in {folder}, "
                "or leave the folder out to load it from the hub"
            )
    rows = read_rows(path, (*task.tsv_texts, task.tsv_label), task.tsv_columns, task.broken_rows)
    label = _label_reader(task, task.tsv_labels)
    return [_example(row.cells[:-1], label(f"{path}, line {row.line}", row.cells[-1])) for row in rows]


def _from_hub(task: GlueTask, split: str) -> list[Example]:
    *texts, labels = _hub_columns(task, split)
    label = _label_reader(task, tuple(range(len(task.labels))))
    place = f"{HUB} {task.name} ({split})"
    rows = zip(zip(*texts, strict=True), labels, strict=True)
    examples = [
        _example(_texts(f"{place}, row {i}", row), label(f"{place}, row {i}", value))
        for i, (row, value) in enumerate(rows)
    ]
    if not examples:
        raise UserError(f"{place} holds no rows; {OTHER_SOURCE}")
    return examples


def _hub_columns(task: GlueTask, split: str) -> list[Sequence]:
    table = load_from_hub(HUB, task.name, split=task.splits[split], otherwise=OTHER_SOURCE)
    columns = (*task.texts, "label")
    if missing := set(columns) - set(table.column_names):
        raise UserError(f"{HUB} {task.name} has no column {', '.join(sorted(missing))}; {OTHER_SOURCE}")
    return [table[column] for column in columns]


def _texts(where: str, texts: Sequence[Any]) -> Sequence[str]:
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{where}: {shown(text)} is not a string; {OTHER_SOURCE}")
    return texts


def _example(texts: Sequence[str], label: int | float) -> Example:
    return Example(texts[0], texts[1] if len(texts) == 2 else None, label)


def _label_reader(task: GlueTask, known: tuple) -> Callable[[str, Any], int | float]:
    """A function of (where a label was found, label) that gives the score or the index of the class."""

    def read_class(where: str, value: Any) -> int:
        if value not in known:
            names = ", ".join(str(name) for name in known)
            raise UserError(f"{where}: the label is {shown(value)}, but must be one of {names}; {AGAIN}")
        return known.index(value)

    def read_score(where: str, value: Any) -> float:
        try:
            score = math.nan if "_" in str(value) else float(str(value).encode("ascii"))
        except ValueError:
            score = math.nan
        if not 0 <= score <= 5:
            raise UserError(f"{where}: the score is {shown(value)}, but must be a number from 0 to 5; {AGAIN}")
        return score

    return read_score if task.regression else read_class


PROTOCOLS = ("propetl", "adalora")
SELECTION_ROWS = 1000


@dataclass(frozen=True)
class Splits:
    """What a run trains on, selects on (None: the last epoch counts) and is tested on.

    `mismatched` is MNLI's second dev split, tested in addition to the first.
    """

    train: list[Example]
    selection: list[Example] | None
    test: list[Example]
    mismatched: list[Example] | None = None


def splits(task: str, protocol: str, data_dir: str | Path | None = None, max_train_rows: int | None = None) -> Splits:
    """The splits of a protocol.

    `propetl` (Table 2 of arXiv 2407.01320): CoLA, RTE, MRPC and STS-B permute the dev split and select on
    its first half, testing on the second; the others select on 1,000 training rows, which training then
    lacks, and test on dev. `adalora` (Table 3): dev is the test set, and nothing is selected.

    Args:
        task: A key of TASKS.
        protocol: One of PROTOCOLS.
        data_dir: A folder with the original GLUE folders; None loads from the hub.
        max_train_rows: Train on at most so many rows, always the same ones; the other splits stay whole.

    Raises:
        UserError: If a setting is unknown, the data cannot be had, a row is malformed, there are too few
            rows for the protocol, or all to train on are of one class.
    """
    found = find_task(task)
    check_choice("protocol", protocol, PROTOCOLS)
    if max_train_rows is not None and (not isinstance(max_train_rows, int) or max_train_rows < 1):
        raise UserError(f"max_train_rows is {max_train_rows!r}; type a whole number of 1 or more, or leave it out")
    parts = {name: load_split(task, data_dir, name) for name in found.splits}
    train, selection, test = parts["train"], None, parts[found.dev]
    order = permutation(len(train))
    if protocol == "propetl" and found.small:
        _check_enough(task, "dev", len(test), 2)
        selection, test = halve(test)
    elif protocol == "propetl":
        _check_enough(task, "training", len(train), SELECTION_ROWS + 1)
        selection, order = [train[i] for i in order[:SELECTION_ROWS]], order[SELECTION_ROWS:]
    training = [train[i] for i in order[:max_train_rows]]
    check_classes(found, training, max_train_rows)
    return Splits(training, selection, test, parts.get("dev_mismatched"))


def check_classes(task: TextTask, training: list[Example], max_train_rows: int | None) -> None:
    """Refuse rows to train on of which nothing can be learned.

    Raises:
        UserError: If all are of one class.
    """
    if not task.regression and len({example.label for example in training}) < 2:
        raise UserError(
            f"{task.name} has training rows of one class only; give rows of two or more"
            + ("" if max_train_rows is None else ", or raise max_train_rows")
        )


def _check_enough(task: str, kind: str, count: int, needed: int) -> None:
    if count < needed:
        raise UserError(
            f"{task} has {count} {kind} rows, but protocol propetl needs {needed}; "
            "give the whole file, or set the protocol to adalora"
        )
