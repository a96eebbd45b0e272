"""The result files of a folder, checked."""

from __future__ import annotations

import json
import os.path
from pathlib import Path
from typing import Any

from capaboost.tables.row_settings import has_rank
from capaboost_core import UserError
from capaboost_core.errors import shown

TEXTS = ("task", "model", "method", "protocol", "metric", "device")
NUMBERS = ("seed", "value", "trainable_parameters", "percent_trainable", "epochs")
LARGEST = 1e300  # what a float holds, and no infinity or NaN


def read_results(folders: list[Path], tuning: bool = False) -> dict[Path, dict[str, Any]]:
    """Every result.json under the folders, checked, but for those of the runs from which a grid's result was selected.

    Args:
        folders: Where they lie.
        tuning: Only the tuning runs of sweeps, whose test rows stayed unseen; else only the other ones.

    Raises:
        UserError: If there is none, or one is malformed.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"there is no folder {shown(str(folder))}; give one that holds runs")
    paths = sorted({path for folder in folders for path in folder.rglob("result.json")})
    if not paths:
        raise UserError(f"no result.json under {', '.join(map(str, folders))}; run `capaboost train-vtab` first")
    results = _without_grids({path: _read(path) for path in paths})
    kept = {path: result for path, result in results.items() if _is_tested(result) != tuning}
    if not kept:
        advice = "leave --tuning out" if tuning else "--tuning shows them"
        raise UserError(f"{folders[0]} holds {'no' if tuning else 'only'} tuning runs of a sweep; {advice}")
    return kept


def _without_grids(results: dict[Path, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Drop what lies below the folder of a grid: its own result repeats the selected run and names the others."""
    grids = {path.parent for path, result in results.items() if result.get("lr_grid")}
    return {path: result for path, result in results.items() if grids.isdisjoint(path.parent.parents)}


def _is_tested(result: dict[str, Any]) -> bool:
    return result.get("config", {}).get("train", {}).get("test", True)


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON; delete the file or run its task again") from error
    if not isinstance(result, dict):
        raise UserError(f"{path} holds no result; delete the file or run its task again")
    wrong = [name for name in TEXTS if not isinstance(result.get(name), str)]
    wrong += [name for name in NUMBERS if not _is_number(result.get(name))]
    wrong += [] if isinstance(result.get("split_note") or "", str) else ["split_note"]
    wrong += [] if isinstance(result.get("lr_grid") or {}, dict) else ["lr_grid"]
    tuning = result.get("tuning") or {"grid": {}}
    wrong += [] if isinstance(tuning, dict) and isinstance(tuning.get("grid"), dict) else ["tuning"]
    wrong += _wrong_settings(result.get("config", {}))
    if wrong:
        raise UserError(f"{path} lacks a usable {', '.join(wrong)}; delete the file or run its task again")
    return result


def _wrong_settings(config: Any) -> list[str]:
    """Names of the settings that `settings_of` cannot show."""
    if not isinstance(config, dict):
        return ["config"]
    sections = {name: config.get(name, {}) for name in ("model", "train", "adapter")}
    if wrong := [f"config.{name}" for name, section in sections.items() if not isinstance(section, dict)]:
        return wrong
    train, adapter = sections["train"], sections["adapter"]
    wrong = [] if _is_number(train.get("lr", 0)) else ["config.train.lr"]
    if has_rank(adapter):
        wrong += [] if _is_number(adapter.get("r")) else ["config.adapter.r"]
        wrong += [] if adapter.get("alpha") is None or _is_number(adapter["alpha"]) else ["config.adapter.alpha"]
    return wrong


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
