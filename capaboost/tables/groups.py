"""Runs that differ in nothing but their seeds as one group, and a short label for each group."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from capaboost.tables.row_settings import (
    NAMED,
    differences,
    run_settings,
    same_value,
    settings_of,
    shown_setting,
    tried,
)
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
    def data(self) -> str | None:
        """The hash of what its runs trained on, which all of them share."""
        return data_of(self.runs[0])

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
        return differences(own, self.method, peers) + ([f"data {self.data}"] if self._has_twin(groups) else [])

    def _has_twin(self, groups: list[Group]) -> bool:
        """Whether another group differs from it in nothing but the data."""
        twins = (g for g in groups if (g.task, g.method, g.settings) == (self.task, self.method, self.settings))
        return any(twin.data != self.data for twin in twins)


def group_runs(results: dict[Path, Result], apart: tuple[str, ...] = ()) -> list[Group]:
    """Put runs of one task, method, settings and data together, in the order of their files.

    Results of earlier versions say nothing of their data, and stay together.

    Args:
        results: By the file that holds it.
        apart: Further fields of a result in which the runs of one group are equal.

    Raises:
        UserError: If two files are the same run, which would count one seed twice.
    """
    groups: dict[str, Group] = {}
    files: dict[str, Path] = {}
    for path, result in results.items():
        task = Task._make([*(result[name] for name in Task._fields[:-1]), result.get("split_note") or ""])
        settings = run_settings(result)
        given = {name: same_value(value) for name, value in settings.items() if value is not None}
        key = [task, result["method"], given, data_of(result), [result[name] for name in apart]]
        run = _text([key, result["seed"], _seeds(result)])
        if run in files:
            raise UserError(f"{path} and {files[run]} are the same run with the same seed; delete one")
        files[run] = path
        groups.setdefault(_text(key), Group(task, result["method"], settings, [])).runs.append(result)
    return list(groups.values())


def data_of(result: Result) -> str | None:
    """The hash of the rows and labels that a run trained on; results of earlier versions have none."""
    return result.get("data_hash")


def unlike(named: Iterable[tuple[str, list[Result]]], of: str) -> list[str]:
    """A line for each part of a run's origin in which results that stand together differ.

    Args:
        named: Results that stand together, with their name.
        of: What such a name stands for, such as `rows`.
    """
    named = list(named)
    lines = []
    for part, get in ORIGINS.items():
        found = {name: sorted({str(get(run)) for run in runs} - {"None"}) for name, runs in named}
        mixed = {name: values for name, values in found.items() if len(values) > 1}
        if mixed:
            name, values = next(iter(mixed.items()))
            lines.append(f"Runs of more than one {part} in {len(mixed)} of {len(named)} {of}, as in {name}: "
                         f"{', '.join(values)}.")  # fmt: skip
    return lines


def _commit(result: Result) -> str | None:
    git = result.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return None
    return f"{git['commit']}"[:8] + (" with changes" if git.get("dirty") else "")


def _in(section: str, name: str) -> Callable[[Result], Any]:
    return lambda result: part.get(name) if isinstance(part := result.get(section), dict) else None


ORIGINS: dict[str, Callable[[Result], Any]] = {
    "training data": data_of,
    "hash of pretrained weights": lambda result: result.get("weights_hash"),
    "commit": _commit,
    **{f"version of {name}": _in("versions", name) for name in ("torch", "timm", "transformers", "capaboost")},
    "number of processes": lambda result: result.get("processes"),
}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _seeds(result: Result) -> list[Any]:
    """The seeds among the settings, such as that of the masks."""
    sections = (section for _, section in sorted(result.get("config", {}).items()) if isinstance(section, dict))
    return [section.get("seed") for section in sections]


TUNED = ("adapter.alpha",)  # of the adapter's settings, the one that is searched like a learning rate
SHORT_NAMES = {"adapter.num_tied": "d"}


def label_groups(groups: list[Group], along: Iterable[str] = ()) -> dict[Group, str]:
    """A label for each group, such as `lora` or, beside another rank, `lora (r 8)`.

    The adapter's settings are named wherever a method has several values of one in a task; all else, such as a
    learning rate, only where two groups would be taken for one, and where another task has that label. So rates that
    were tuned for each task give one label.

    Args:
        groups: Those that stand beside each other.
        along: Settings that something else shows, such as the axis of a plot: groups that differ in these may share a
            label, and no label holds them.
    """
    by_method: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_method[group.method].append(group)
    return {group: label for members in by_method.values() for group, label in _labels(members, along).items()}


def natural_order(label: str) -> list[str | float]:
    """A key that sorts `r 8` before `r 16`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [float(part) if number % 2 else part for number, part in enumerate(parts)]


def _labels(members: list[Group], along: Iterable[str]) -> dict[Group, str]:
    short = _of_the_adapter(members, along)
    names = list(short)
    while further := _most_telling(members, names, along):
        names.append(further)
    crowds = [together for together in _alike(members, (*short, *along)) if len(together) > 1]
    needed = {_label(group, names) for together in crowds for group in together}
    return {group: _label(group, names if _label(group, names) in needed else short) for group in members}


def _of_the_adapter(members: list[Group], along: Iterable[str]) -> list[str]:
    names = dict.fromkeys(name for group in members for name in group.settings)
    asked = [name for name in names if name.startswith("adapter.") and name not in (*TUNED, *along)]
    return [name for name in asked if any(_values(beside, name) > 1 for beside in _alike(members, ()))]


def _most_telling(members: list[Group], names: list[str], along: Iterable[str]) -> str | None:
    """The setting that splits most of what `names` and `along` leave together; of equal ones a common one."""
    splits: dict[str, int] = defaultdict(int)
    for together in _alike(members, (*names, *along)):
        for name in dict.fromkeys([*NAMED, *(name for group in together for name in group.settings)]):
            splits[name] += 0 if name in along else _values(together, name) - 1
    best = max(splits, key=splits.__getitem__, default="")
    return best if splits[best] else None


def _alike(members: list[Group], names: Iterable[str]) -> Iterable[list[Group]]:
    """The groups of each task that have equal values of all the names."""
    places = defaultdict(list)
    for group in members:
        places[group.task, *(same_value(group.settings.get(name)) for name in names)].append(group)
    return places.values()


def _values(groups: list[Group], name: str) -> int:
    return len({same_value(group.settings.get(name)) for group in groups})


def _label(group: Group, names: list[str]) -> str:
    parts = [_part(name, value) for name in names if (value := group.settings.get(name)) is not None]
    return f"{group.method} ({', '.join(parts)})" if parts else group.method


def _part(name: str, value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else value
    return f"{SHORT_NAMES[name]} {text}" if name in SHORT_NAMES else shown_setting(name, text)
