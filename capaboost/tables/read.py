"""Read and check the result files under folders, and the records of runs that failed."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capaboost.sweeps.folder import FAILED
from capaboost.tables.row_settings import has_rank, is_tuning, wrong_grids
from capaboost.training.run_folder import RESULT, is_number
from capaboost_core import UserError
from capaboost_core.errors import shown
from capaboost_core.files import read_text

TEXTS = ("task", "model", "method", "protocol", "metric", "device")
NUMBERS = ("seed", "value", "trainable_parameters", "percent_trainable", "epochs")


def read_results(folders: list[Path]) -> dict[Path, dict[str, Any]]:
    """Every result.json under the folders, checked, but for those of runs by which settings were selected.

    Where there are no others, these are read.

    Raises:
        UserError: If there is none, or one is malformed.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"there is no folder {shown(str(folder))}; give one that holds runs")
    paths = find_files(folders, RESULT)
    if not paths:
        raise UserError(f"no result.json under {', '.join(map(str, folders))}; run `capaboost train-vtab` first")
    results = _without_tuning({path: _read(path) for path in paths})
    for path, result in results.items():
        _check(path, result)
    return results


def find_files(folders: list[Path], name: str) -> list[Path]:
    """Every file of this name under the folders, sorted, through links to folders too; a file that several paths
    lead to is there once, without a link if there is such a path.
    """
    found: dict[str, Path] = {}
    for links in (False, True):
        for path in sorted(path for folder in folders for path in _below(folder, name, links)):
            found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def _below(folder: Path, name: str, links: bool) -> Iterator[Path]:
    """Paths of that name; a folder to which links lead back is read once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=links):
        if name in files or name in folders:
            yield Path(place, name)
        seen.add(os.path.realpath(place))
        folders[:] = [each for each in folders if os.path.realpath(os.path.join(place, each)) not in seen]


def _without_tuning(results: dict[Path, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Drop tuning, and what lies below the folder of `--lr-grid`, whose own result repeats the selected run."""
    grids = {path.parent for path, result in results.items() if result.get("lr_grid")}
    others = {path: result for path, result in results.items() if grids.isdisjoint(path.parent.parents)}
    return {path: result for path, result in others.items() if not is_tuning(result)} or others


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON; delete the file or run its task again") from error
    if not isinstance(result, dict):
        raise UserError(f"{path} holds no result; delete the file or run its task again")
    return result


def _check(path: Path, result: dict[str, Any]) -> None:
    wrong = [name for name in TEXTS if not isinstance(result.get(name), str)]
    wrong += [name for name in NUMBERS if not is_number(result.get(name))]
    wrong += [
        name for name in ("split_note", "data_hash", "weights_hash") if not isinstance(result.get(name) or "", str)
    ]
    wrong += wrong_grids(result)
    wrong += _wrong_settings(result.get("config", {}))
    if wrong:
        raise UserError(f"{path} lacks a usable {', '.join(wrong)}; delete the file or run its task again")


def _wrong_settings(config: Any) -> list[str]:
    """Names of the settings that `settings_of` cannot show."""
    if not isinstance(config, dict):
        return ["config"]
    sections = {name: config.get(name, {}) for name in ("model", "train", "adapter")}
    if wrong := [f"config.{name}" for name, section in sections.items() if not isinstance(section, dict)]:
        return wrong
    train, adapter = sections["train"], sections["adapter"]
    wrong = [] if is_number(train.get("lr", 0)) else ["config.train.lr"]
    if has_rank(adapter):
        wrong += [] if is_number(adapter.get("r")) else ["config.adapter.r"]
        wrong += [] if adapter.get("alpha") is None or is_number(adapter["alpha"]) else ["config.adapter.alpha"]
    return wrong


TUNING = "train.test=false"  # in the command of a run that tunes


def failed_runs(folders: list[Path]) -> list[str]:
    """A line for each run under the folders that left `failed.json` and no result.

    A rate at which tuning diverged is no failure: that is what tuning finds out.

    Raises:
        UserError: If a record is malformed.
    """
    paths = find_files(folders, FAILED)
    records = {path.parent: _read_failure(path) for path in paths if not path.with_name(RESULT).exists()}
    return [_line(place, record) for place, record in records.items() if not _is_tried(record)]


def _read_failure(path: Path) -> dict[str, Any]:
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
