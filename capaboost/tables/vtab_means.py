"""The means that papers print of VTAB-1k, which are not one number."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

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


def told_means(values: Mapping[str, float]) -> str:
    """`mean of 19 73.23, mean of groups 75.55`; empty without the tasks of a mean."""
    means = vtab_means(values) if len(values) >= len(PAPER) else {}
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items())
