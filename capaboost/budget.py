"""`--budget` and `--budget-percent`: a run's settings with the knob of its method that meets them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capaboost.report.cost import ModelFactory
    from capaboost.report.sizes import Budgeted


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
    """The run with its method within the budget, told in a line; the run itself without one.

    Raises:
        UserError: If the method has no knob or `--set` gives it, the budget is no number, or no size comes near it.
    """
    budget = budget_of(options)
    if budget is None:
        check_nearest(options)
        return run
    from capaboost.console import tell
    from capaboost.training.processes import is_first
    from capaboost.training.settings import flat, parse_assignments

    refuse_given(run.adapter, flat(parse_assignments(options.set)))
    found = solve(subject_of(run), run.adapter, budget, options.nearest)
    if is_first():
        tell(describe_budget(found))
    return dataclasses.replace(run, adapter=found.method)


def check_nearest(options: argparse.Namespace) -> None:
    """Refuse `--nearest` where there is no budget to be near to.

    Raises:
        UserError: If so.
    """
    from capaboost_core.errors import UserError

    if options.nearest and budget_of(options) is None:
        raise UserError("--nearest belongs to --budget or --budget-percent; give one, or leave it out")


def refuse_given(method: Any, given: Iterable[str]) -> None:
    """Refuse a knob that is given beside a budget, which would take its place.

    Args:
        method: Whose knob it is.
        given: Settings by section.key.

    Raises:
        UserError: If so.
    """
    from capaboost_core.errors import UserError

    if (size_field := f"adapter.{method.budget}") in given:
        raise UserError(f"{size_field} is given beside a budget, which sets it; leave one of them out")


def solve(subject: ModelFactory, method: Any, budget: str, nearest: bool = False) -> Budgeted:
    """The method within the budget, on a model.

    Args:
        subject: The base model without weights.
        method: All other settings.
        budget: `220k`, `0.22M`, or in percent of the model `0.26%`.
        nearest: Take the nearest size also where none is within a tenth of the budget.

    Raises:
        UserError: If the method has no knob, the budget is no number, or no size comes near it.
    """
    from capaboost.report.sizes import within_budget

    return within_budget(subject, method, entries_of(subject, method, budget), nearest)


def entries_of(subject: ModelFactory, method: Any, budget: str) -> int:
    """A budget as trained parameters of the method on a model.

    Raises:
        UserError: If it is no number, or the model does not take the method.
    """
    from capaboost.report.sizes import parse_budget, parse_percent
    from capaboost_core.injection import parameter_counts

    if not budget.endswith("%"):
        return parse_budget(budget)
    total = parameter_counts(subject.inject(subject.build(), method)).total
    return round(total * parse_percent(budget) / 100)


def subject_of(run: Any) -> ModelFactory:
    """The run's base model without weights.

    Raises:
        UserError: If its architecture is not known offline.
    """
    from capaboost_core.errors import UserError

    if getattr(run.model, "kwargs", {}):
        raise UserError("a budget is solved for models without model.kwargs; set the method's own knob")
    return _subject(run.model.name, getattr(run.model, "img_size", None))


@cache
def _subject(name: str, image_size: int | None) -> ModelFactory:
    """One for all methods of a sweep, as a subject copies the model that it built first."""
    from capaboost.report.models import Sizes, make_subject

    return make_subject(name, Sizes(image_size=image_size))


def describe_budget(found: Budgeted) -> str:
    """`budget: lora with r 6 trains 221,184 parameters`, and where a rank is beyond the model's width that it is."""
    method, size_field = found.method, found.size_field
    value = getattr(method, size_field)
    beyond = size_field == "r" and value > found.width > 0
    note = f"; r is {value / found.width:.1f} times the model's width of {found.width}" if beyond else ""
    return f"budget: {method.label} with {size_field} {value} trains {found.trainable:,} parameters{note}"
