"""One budget for any method: the size whose trained parameters come nearest to a number or a percentage."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from capaboost.report.cost import ModelFactory
from capaboost_core.errors import UserError
from capaboost_core.injection import parameter_counts
from capaboost_core.methods import Method

SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "m": 1e6, "B": 1e9, "G": 1e9}
LARGEST_SIZE = 65536
TOLERANCE = 0.1  # share of the budget by which the nearest size may miss it


@dataclass(frozen=True)
class Budgeted:
    """A method within a budget.

    Attributes:
        method: With the size that was found.
        size_field: The setting that was found, such as r.
        trainable: Its trained parameters, the head's not among them.
        width: That of the model: how many inputs most of its linear layers have.
    """

    method: Method
    size_field: str
    trainable: int
    width: int


def solve(subject: ModelFactory, method: Method, budget: str, nearest: bool = False) -> Budgeted:
    """The method within the budget, on a model.

    Args:
        subject: The base model without weights.
        method: All other settings.
        budget: `220k`, `0.22M`, or in percent of the model `0.26%`.
        nearest: Take the nearest size also where none is within a tenth of the budget.

    Raises:
        UserError: If the method has no size setting, the budget is no number, or no size comes near it.
    """
    return within_budget(subject, method, entries_of(subject, method, budget), nearest)


def entries_of(subject: ModelFactory, method: Method, budget: str) -> int:
    """A budget as trained parameters of the method on a model.

    Raises:
        UserError: If it is no number, or the model does not take the method.
    """
    if not budget.endswith("%"):
        return parse_budget(budget)
    total = parameter_counts(subject.inject(subject.build(), method)).total
    return round(total * parse_percent(budget) / 100)


def refuse_given(method: Method, given: Iterable[str]) -> None:
    """Refuse a size that is given beside a budget, which would replace it.

    Args:
        method: Whose size it is.
        given: Settings by section.key.

    Raises:
        UserError: If so.
    """
    if (size_field := f"adapter.{method.budget}") in given:
        raise UserError(f"{size_field} is given beside a budget, which sets it; leave one of them out")


def parse_budget(text: str) -> int:
    """`0.22M`, `220k` or `221184` -> a number of parameters.

    Raises:
        UserError: If it is no number above 0.
    """
    plain, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1)
    try:
        entries = float(plain) * factor
    except ValueError:
        entries = 0.0
    if not 1 <= entries < 1e15:
        raise UserError(f"budget is {text!r}; type a number of parameters, such as 220000, 220k or 0.22M")
    return round(entries)


def check_budget(text: str) -> None:
    """Refuse what is neither a number of parameters nor a percentage.

    Raises:
        UserError: If so.
    """
    (parse_percent if text.endswith("%") else parse_budget)(text)


def parse_percent(text: str) -> float:
    """`0.26%` -> 0.26.

    Raises:
        UserError: If it is no number above 0, up to 100.
    """
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise UserError(f"a budget of {text}: type a number above 0, up to 100")
    return percent


def within_budget(subject: ModelFactory, method: Method, entries: int, nearest: bool = False) -> Budgeted:
    """The method with the value of `Method.budget`, its size setting, that trains nearest to the budget.

    Counts rise with the size, so a search by halves finds the two values around the budget. Where they rise no
    further, as with LoKr, whose layer bounds r, a second search finds where that began; the nearest of all is taken.

    Args:
        subject: The base model, on the meta device.
        method: All other settings.
        entries: Trained parameters, the head's not among them.
        nearest: Take the nearest size however far it is.

    Raises:
        UserError: If the method has no size setting, the model does not take it, or no size is within a tenth of the
            budget.
    """
    size_field = method.budget
    if size_field is None:
        raise UserError(f"method {method.label} has no setting that a budget changes; leave --budget out for it")

    def at(steps: int) -> Method:
        return method.replace(**{size_field: steps * method.budget_step})

    counts: dict[int, int] = {}

    def count(steps: int) -> int:
        if steps not in counts:
            counts[steps] = parameter_counts(subject.inject(subject.build(), at(steps))).trainable
        return counts[steps]

    low, high = 1, 2
    while count(high) < entries and 2 * high * method.budget_step <= LARGEST_SIZE:
        low, high = high, 2 * high
    low, high = _around(entries, count, low, high)
    if count(low) == count(high):  # the size has no effect here; count where that begins too
        _around(count(low), count, 0, low)
    best = min(sorted(counts), key=lambda steps: abs(counts[steps] - entries))
    found = Budgeted(at(best), size_field, counts[best], _width(subject))
    if not nearest and abs(found.trainable - entries) > TOLERANCE * entries:
        raise UserError(
            f"method {method.label} comes no nearer to a budget of {entries:,} than {found.trainable:,} parameters, "
            f"with {size_field} {getattr(found.method, size_field)}; pass --nearest (nearest: true in a sweep) to "
            "take that, or another budget"
        )
    return found


def _width(subject: ModelFactory) -> int:
    layers = [module for module in subject.build().modules() if isinstance(module, nn.Linear)]
    return statistics.mode(layer.in_features for layer in layers) if layers else 0


def _around(entries: int, count: Callable[[int], int], low: int, high: int) -> tuple[int, int]:
    """Neighbours between the two, of which the second is the first value that has as many entries."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < entries else (low, middle)
    return low, high


def describe_budget(found: Budgeted) -> str:
    """`budget: lora with r 6 trains 221,184 parameters`, and where a rank is beyond the model's width that it is."""
    method, size_field = found.method, found.size_field
    value = getattr(method, size_field)
    beyond = size_field == "r" and value > found.width > 0
    note = f"; r is {value / found.width:.1f} times the model's width of {found.width}" if beyond else ""
    return f"budget: {method.label} with {size_field} {value} trains {found.trainable:,} parameters{note}"
