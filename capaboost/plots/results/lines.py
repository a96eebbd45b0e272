"""Value against one setting of the adapter, a line for each method and kind of mask."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capaboost.plots.results.panels import Undrawn, styles_of, task_panels
from capaboost.tables.compare import by_seed
from capaboost.tables.groups import Group, Task
from capaboost.tables.labels import label_groups
from capaboost.tables.statistics import Spread, spread_of

Lines = dict[str, dict[float, Spread]]  # the points of each line, by the label of the line
WITH = {"adapter.density": ("adapter.n", "adapter.m")}  # what moves together with a setting


def lines(groups: list[Group], name: str, title: str) -> Figure:
    """Means over seeds with their deviation; the adapter's other settings, but for alpha, are equal along a line.

    Args:
        groups: All of the results.
        name: The setting on the x axis, such as `adapter.r`.
        title: What the axis is called.
    """
    rows = {task: of for task, of in _points(groups, name).items() if any(len(line) > 1 for line in of.values())}
    if not rows:
        raise Undrawn(f"no method has two values of {title} on a task, the adapter's other settings equal")
    styles = styles_of(label for of in rows.values() for label in of)
    figure, panels = task_panels(sorted(rows), styles)
    for task, panel in panels.items():
        for label, line in rows[task].items():
            x = sorted(line)
            mean, std = [line[at].mean for at in x], [line[at].std or 0 for at in x]
            panel.errorbar(x, mean, yerr=std, elinewidth=1, capsize=2, alpha=0.85, **styles[label])
        panel.set_xlabel(title)
        _ticks(panel, sorted({at for line in rows[task].values() for at in line}))
    return figure


def _points(groups: list[Group], name: str) -> dict[Task, Lines]:
    having = [group for group in groups if isinstance(group.settings.get(name), (int, float))]
    rows: dict[Task, Lines] = defaultdict(lambda: defaultdict(dict))
    for group, label in label_groups(having, (name, *WITH.get(name, ()))).items():
        rows[group.task][label][group.settings[name]] = spread_of(by_seed(group).values())
    return rows


def _ticks(panel: Axes, values: list[float]) -> None:
    """A density runs from 0 to 1; whole numbers double, with a tick for each value that has room."""
    if values[-1] <= 1:
        panel.set_xlim(0, 1.04)
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        return
    panel.set_xscale("log", base=2)
    kept = values[:1]
    kept += [value for before, value in pairwise(values) if value / before > 1.3]
    panel.set_xticks(kept, [f"{value:g}" for value in kept])
