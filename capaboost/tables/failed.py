"""Runs that failed: their record lies where the result would."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from capaboost_core import UserError

FAILED, TUNING = "failed.json", "train.test=false"


def failed_runs(folders: list[Path]) -> list[str]:
    """A line for each run under the folders that left `failed.json` and no result.

    Raises:
        UserError: If a record is malformed.
    """
    paths = sorted({path for folder in folders for path in folder.rglob(FAILED)})
    lines = [_line(path) for path in paths if not path.with_name("result.json").exists()]
    return [line for line in lines if line]


def _line(path: Path) -> str:
    """Empty for a rate at which a tuning run diverged: that is what tuning finds out."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON; delete the file or run its task again") from error
    texts = [record.get(name) for name in ("error", "command")] if isinstance(record, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path} lacks a usable error and command; delete the file or run its task again")
    if record.get("kind") == "diverged" and TUNING in record["command"]:
        return ""
    error, command = (textwrap.shorten(text, 200, placeholder=" ...") for text in texts)
    return f"{path.parent}: {error} ({command})"
