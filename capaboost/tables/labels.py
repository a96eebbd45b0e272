"""Short names of groups: the method, and the settings that tell its groups apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from capaboost.tables.groups import Group
from capaboost.tables.row_settings import NAMED, same_value, shown_setting

TUNED = ("adapter.alpha",)  # of the adapter's settings, the one that is searched like a learning rate
SHORT = {"adapter.num_tied": "d"}


def label_groups(groups: list[Group], along: Iterable[str] = ()) -> dict[Group, str]:
    """A label for each group, such as `lora` or, beside another rank, `lora (r 8)`.

    The adapter's settings are told wherever a method has several values of one in a task; all else, such as a
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
    return f"{SHORT[name]} {text}" if name in SHORT else shown_setting(name, text)
