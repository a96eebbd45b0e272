"""Runs that failed: their record lies where the result would."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from capaboost.sweeps.folder import FAILED
from capaboost.tables.read import find_files
from capaboost_core import UserError
from capaboost_core.files import read_text
from capaboost_core.training.run_folder import RESULT

TUNING = "train.test=false"  # in the command of a run that tunes


def failed_runs(folders: list[Path]) -> list[str]:
    """A line for each run under the folders that left `failed.json` and no result.

    A rate at which tuning diverged is no failure: that is what tuning finds out.

    Raises:
        UserError: If a record is malformed.
    """
    paths = find_files(folders, FAILED)
    records = {path.parent: _read(path) for path in paths if not path.with_name(RESULT).exists()}
    return [_line(place, record) for place, record in records.items() if not _is_tried(record)]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON; delete the file or run its task again") from error
    texts = [record.get(name) for name in ("error", "command")] if isinstance(record, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path} lacks a usable error and command; delete the file or run its task again")
    return record


def _is_tried(record: dict[str, Any]) -> bool:
    return record.get("kind") == "diverged" and TUNING in record["command"]


def _line(place: Path, record: dict[str, Any]) -> str:
    error, command = (textwrap.shorten(record[name], 200, placeholder=" ...") for name in ("error", "command"))
    return f"{place}: {error} ({command})"
