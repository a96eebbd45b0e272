"""The flags `--budget` and `--budget-percent`, and a run whose method meets them."""

from __future__ import annotations

import argparse
import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capaboost.report.cost import ModelFactory


def add_budget_flags(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--budget", metavar="N", help="trained parameters without the head, such as 220k or "
        "0.22M; the method's r, width or number comes as near as it can")  # fmt: skip
    budget.add_argument("--budget-percent", type=float, metavar="X", help="the same in percent of the model")
    parser.add_argument("--nearest", action="store_true", help="take the nearest size also where none is within 10 %% "
        "of the budget")  # fmt: skip


def budget_of(options: argparse.Namespace) -> str | None:
    """The flags as one text, such as `0.22M` or `0.26%`; None without them."""
    return options.budget if options.budget_percent is None else f"{options.budget_percent}%"


def budgeted(run: Any, options: argparse.Namespace) -> Any:
    """The run with its method within the budget, which a line reports; without a budget the run itself.

    Raises:
        UserError: If the method has no size setting or `--set` gives it, the budget is no number, or none comes near.
    """
    budget = budget_of(options)
    if budget is None:
        check_nearest(options)
        return run
    from capaboost.console import note
    from capaboost.report.sizes import describe_budget, refuse_given, solve
    from capaboost.training.processes import is_first
    from capaboost.training.settings import flat, parse_assignments

    refuse_given(run.adapter, flat(parse_assignments(options.set)))
    found = solve(subject_of(run), run.adapter, budget, options.nearest)
    if is_first():
        note(describe_budget(found))
    return dataclasses.replace(run, adapter=found.method)


def check_nearest(options: argparse.Namespace) -> None:
    """Refuse `--nearest` where there is no budget to be near to.

    Raises:
        UserError: If so.
    """
    from capaboost_core.errors import UserError

    if options.nearest and budget_of(options) is None:
        raise UserError("--nearest belongs to --budget or --budget-percent; give one, or leave it out")


def subject_of(run: Any) -> ModelFactory:
    """The run's base model without weights.

    Raises:
        UserError: If its architecture is not known offline.
    """
    from capaboost_core.errors import UserError

    if getattr(run.model, "kwargs", {}):
        raise UserError(
            "a budget is solved for models without model.kwargs; set the method's size, such as adapter.r, by --set"
        )
    return _subject(run.model.name, getattr(run.model, "img_size", None), getattr(run, "head", None))


@cache
def _subject(name: str, image_size: int | None, head: str | None) -> ModelFactory:
    """One for all methods of a sweep, as a subject copies the model that it built first."""
    from capaboost.report.models import Sizes, make_subject

    return make_subject(name, Sizes(image_size=image_size, head=head))
