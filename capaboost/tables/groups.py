"""Runs that differ in nothing but their seeds, together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from capaboost.tables.row_settings import differences, run_settings, same_value, settings_of
from capaboost.tables.tried import tried
from capaboost_core import UserError

Result = dict[str, Any]


class Task(NamedTuple):
    """What runs have in common that may be compared."""

    task: str
    model: str
    protocol: str
    metric: str
    split_note: str


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one task and method with the same settings but for their seeds."""

    task: Task
    method: str
    settings: dict[str, Any]
    runs: list[Result]

    @property
    def values(self) -> list[float]:
        return [float(run["value"]) for run in self.runs]

    def shown_settings(self, groups: list[Group], usual: frozenset[str] = frozenset()) -> str:
        """The settings that every row shows, and those in which it differs from others of its task but the usual."""
        further = [text for text in self.differences(groups) if text not in usual]
        return ", ".join(filter(None, (settings_of(self.runs), *further)))

    def differences(self, groups: list[Group]) -> list[str]:
        """The settings in which it differs from others of its task."""
        peers = [(g.method, g.settings) for g in groups if g.task[:3] == self.task[:3]]
        own = {name: value for name, value in self.settings.items() if name not in tried(self.runs[0])}
        return differences(own, self.method, peers)


def group_runs(results: dict[Path, Result], apart: tuple[str, ...] = ()) -> list[Group]:
    """Put runs of one task, method and settings together, in the order of their files.

    Args:
        results: By the file that holds it.
        apart: Further fields of a result in which the runs of one group are equal.

    Raises:
        UserError: If two files are the same run, which would count one seed twice.
    """
    groups: dict[str, Group] = {}
    files: dict[str, Path] = {}
    for path, result in results.items():
        task = Task(*(result[name] for name in Task._fields[:-1]), result.get("split_note") or "")
        settings = run_settings(result)
        given = {name: same_value(value) for name, value in settings.items() if value is not None}
        key = [task, result["method"], given, [result[name] for name in apart]]
        run = _text([key, result["seed"], _seeds(result)])
        if run in files:
            raise UserError(f"{path} and {files[run]} are the same run with the same seed; delete one")
        files[run] = path
        groups.setdefault(_text(key), Group(task, result["method"], settings, [])).runs.append(result)
    return list(groups.values())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _seeds(result: Result) -> list[Any]:
    """The seeds among the settings, such as that of the masks."""
    sections = (section for _, section in sorted(result.get("config", {}).items()) if isinstance(section, dict))
    return [section.get("seed") for section in sections]
