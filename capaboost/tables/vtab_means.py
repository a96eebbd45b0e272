"""The means that papers print of VTAB-1k, which are not one number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean

from capaboost.tables.compare import Comparison

TASKS = 19
PAPER = (  # of arXiv 2407.01320, Table 5
    "cifar", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "eurosat", "resisc45", "clevr_count", "clevr_dist",
    "dmlab", "dsprites_ori", "smallnorb_azi",
)  # fmt: skip


def vtab_means(values: Mapping[str, float]) -> dict[str, float]:
    """The means of a method's value by task, as far as it has their tasks.

    `mean of 19` weighs every task alike, `mean of groups` (natural, specialized, structured) every group; papers call
    both the average, and they lie two points apart. `mean of CapaBoost's 12` is that of its Table 5.
    """
    from capaboost_vision.vtab import GROUPS

    tasks = [task for group in GROUPS.values() for task in group]
    means = {}
    if values.keys() >= set(tasks):
        groups = [fmean(values[task] for task in group) for group in GROUPS.values()]
        means = {"mean of 19": fmean(values[task] for task in tasks), "mean of groups": fmean(groups)}
    if values.keys() >= set(PAPER):
        means["mean of CapaBoost's 12"] = fmean(values[task] for task in PAPER)
    return means


def means_of(table: Comparison) -> Iterator[str]:
    """A line for each method that has enough of the tasks, of one model, protocol and kind of rows."""
    if len({task.task for task in table.tasks}) < len(PAPER):
        return
    kinds = dict.fromkeys((task.model, task.protocol, task.metric) for task in table.tasks)
    for kind in kinds:
        for method in table.methods:
            cells = {task.task: cell for (task, name), cell in table.cells.items() if name == method and
                     (task.model, task.protocol, task.metric) == kind}  # fmt: skip
            means = vtab_means({task: cell.spread.mean for task, cell in cells.items()})
            if means:
                told = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
                yield f"VTAB-1k, {method}{f' ({kind[0]}, {kind[1]})' if len(kinds) > 1 else ''}: {told}."
