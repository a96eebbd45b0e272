"""A data set of the user's own: files or a name on the hub, one or two columns of text, and a class or a number."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from capaboost_core.errors import UserError, shown
from capaboost_text.encode import Example, permutation, take
from capaboost_text.glue.data import Splits, check_classes
from capaboost_text.glue.tasks import GlueDataSection, TextTask
from capaboost_text.hub import load_from_hub
from capaboost_text.table_file import check_characters, opened, read_json_rows, read_rows

FILE_ENDINGS = (".tsv", ".csv", ".jsonl")
TEXT_COLUMNS = ("text", "sentence", "review", "comment", "content", "document")
LABEL_COLUMNS = ("label", "class", "category", "target", "stars", "score", "rating")
MOST_CLASSES = 100  # of labels that are all whole numbers


def own_task(data: GlueDataSection) -> TextTask:
    """What the settings say is predicted and reported."""
    return TextTask(name=data.task, labels=data.class_names, metrics=data.metric_names)


def own_splits(data: GlueDataSection) -> Splits:
    """The splits that the settings name.

    Raises:
        UserError: If a file or column is missing, a row is malformed, or all training rows are of one class.
    """
    assert data.train is not None  # the section refuses own data without it
    train = read_own(data, data.train)
    train, test = hold_out(train, data.holdout) if data.test is None else (train, read_own(data, data.test))
    selection = read_own(data, data.selection) if data.selection else None
    training = take(train, data.max_train_rows)
    check_classes(own_task(data), training, data.max_train_rows)
    return Splits(training, selection, test)


def hold_out(rows: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """The rows that stay, and round(share * n) of the n rows of each class, at least one of two, by the fixed order.

    Numbers to predict are one class.
    """
    of_class = defaultdict(list)
    for index in permutation(len(rows)):
        label = rows[index].label
        of_class[label if isinstance(label, int) else None].append(index)
    out = {i for part in of_class.values() for i in part[: min(len(part) - 1, max(1, round(share * len(part))))]}
    return [row for i, row in enumerate(rows) if i not in out], [rows[i] for i in sorted(out)]


def describe(path: Path, texts: Sequence[str], label: str | None) -> dict[str, Any]:
    """The settings of a file of one's own: its columns, and its classes or that it holds numbers.

    Args:
        path: A .tsv, .csv or .jsonl file.
        texts: Columns of the texts; without any, the one of a usual name.
        label: The column to predict, likewise.

    Raises:
        UserError: If the file cannot be read, or a column has to be named.
    """
    known = _columns(path)
    texts = tuple(texts) or _guess(path, known, TEXT_COLUMNS, "--text")
    label = label or _guess(path, known, LABEL_COLUMNS, "--label")[0]
    read = read_json_rows if path.suffix.lower() == ".jsonl" else read_rows
    values = (cells[0] for _, cells in read(path, (label,)))
    settings = {"task": path.stem, "dir": str(path.parent), "train": path.name, "texts": texts, "label": label}
    names = sorted({value if isinstance(value, str) else json.dumps(value) for value in values})
    return settings if _are_measured(names) else settings | {"classes": tuple(names)}


def _columns(path: Path) -> list[str]:
    if path.suffix.lower() not in FILE_ENDINGS:
        raise UserError(f"{path} has none of the endings {', '.join(FILE_ENDINGS)}; save it as one of them")
    with opened(path) as file:
        first = file.readline()
    if path.suffix.lower() == ".jsonl":
        try:
            return list(json.loads(first))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line 1 is no object with names; give JSON lines") from error
    columns = next(csv.reader([first], delimiter="\t" if path.suffix.lower() == ".tsv" else ","), [])
    if not any(map(str.strip, columns)):
        raise UserError(f"{path} has no header; name its columns in the first line, such as text,label")
    return columns


def _guess(path: Path, known: Sequence[str], usual: Sequence[str], flag: str) -> tuple[str, ...]:
    found = [name for name in known if name.lower() in usual]
    if len(found) != 1:
        raise UserError(f"{path} has the columns {shown(', '.join(known))}; say which by {flag} COLUMN")
    return (found[0],)


def _are_measured(names: Sequence[str]) -> bool:
    """Whether labels are measurements: numbers, of which some are not whole, or more than MOST_CLASSES differ."""
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return False
    whole = all(number.is_integer() for number in numbers if math.isfinite(number))
    return len(names) > MOST_CLASSES or not whole


def read_own(data: GlueDataSection, split: str) -> list[Example]:
    """The checked rows of one split: a file below `data.dir`, or a split on the hub.

    Raises:
        UserError: If it cannot be had, or a row is malformed; it names file and line.
    """
    rows = _of_hub(data, split) if data.hub else _of_file(data, Path(data.dir or ".") / split)
    return [_example(data, where, *cells) for where, cells in rows]


def _of_file(data: GlueDataSection, path: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if path.suffix.lower() not in FILE_ENDINGS:
        raise UserError(
            f"{path} has none of the endings {', '.join(FILE_ENDINGS)}; rename it, or save it as one of them"
        )
    read = read_json_rows if path.suffix.lower() == ".jsonl" else read_rows
    return ((f"{path}, line {line}", cells) for line, cells in read(path, _all_columns(data)))


def _of_hub(data: GlueDataSection, split: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    assert data.hub is not None
    place = " ".join(filter(None, (data.hub, data.subset)))
    advice = "check data.hub, data.subset and the names of the splits, or give files of your own"
    table = load_from_hub(data.hub, *([data.subset] if data.subset else []), split=split, otherwise=advice)
    columns = _all_columns(data)
    for name in columns:
        if name not in table.column_names:
            raise UserError(f"{place} has no column {name!r} but {shown(', '.join(table.column_names))}; type one")
    if not len(table):
        raise UserError(f"{place} ({split}) holds no rows; choose another split")
    rows = zip(*(table[name] for name in columns), strict=True)
    return ((f"{place} ({split}), row {i}", cells) for i, cells in enumerate(rows))


def _all_columns(data: GlueDataSection) -> tuple[str, ...]:
    assert data.label is not None  # the section refuses own data without it
    return (*data.columns, data.label)


def _example(data: GlueDataSection, where: str, *cells: Any) -> Example:
    *texts, label = cells
    for name, text in zip(data.columns, texts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"{where}: {name} is {shown(text)} and not text; correct it, or choose another column")
        if not text.strip():
            raise UserError(f"{where}: {name} is empty; fill it in, or leave the row out")
        check_characters(where, name, text)
    text, *pair = texts
    names = data.class_names
    value = _class(where, label, names) if names else _number(where, label)
    return Example(text, pair[0] if pair else None, value)


def _class(where: str, value: Any, names: tuple[str, ...]) -> int:
    name = value if isinstance(value, str) else json.dumps(value, default=str)
    if name not in names:
        listed = shown(", ".join(names))
        raise UserError(f"{where}: the label is {shown(value)}, but data.classes has {listed}; mend one of them")
    return names.index(name)


def _number(where: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"{where}: the label is {shown(value)} and not a number; correct it, or name the classes in data.classes"
        )
    return number
