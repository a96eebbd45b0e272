"""`inference.json`, beside an adapter's weights: what a new process needs to use them.

`save_adapter` knows the module, not the data; a training run adds the base model's settings, the names of the classes
and the transform of an input. Adapters without this file load as before, into a model that the caller builds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from capaboost_core.errors import UserError
from capaboost_core.files import read_text, write_atomically

INFERENCE = "inference.json"
KINDS = ("images", "texts")
MOST_BYTES = 64 * 2**20


def write_inference(folder: Path, record: dict[str, Any]) -> None:
    """Write the record into an adapter's folder.

    Raises:
        UserError: If the file cannot be written.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / INFERENCE, lambda file: file.write(text.encode()))


def read_inference(folder: Path) -> dict[str, Any] | None:
    """The record of an adapter's folder; None if it has none.

    Raises:
        UserError: If it is damaged.
    """
    path = folder / INFERENCE
    if not path.is_file():
        return None
    try:
        record = json.loads(read_text(path, MOST_BYTES))
        _check(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again from where the adapter was trained") from error
    return record


def _check(record: Any) -> None:
    """Raise if a field is missing or of another kind."""
    if record["kind"] not in KINDS or not isinstance(record["model"]["name"], str):
        raise ValueError("it has another form")
    if not all(isinstance(name, str) for name in record["classes"]):
        raise ValueError("its classes are no names")
    if record["kind"] == "texts":
        if type(record["max_length"]) is not int or not 1 <= len(record["columns"]) <= 2:
            raise ValueError("its texts are of another form")
        return
    form = record["transform"]
    sizes, numbers = form["size"], [*form["mean"], *form["std"]]
    if [type(size) for size in sizes] != [int, int] or [type(number) for number in numbers] != [float] * 6:
        raise ValueError("its transform is of another form")
