"""What a training loop calls: the protocol of a task, and the hooks of a method around its steps."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from capaboost_core.files import write_atomically
from capaboost_core.injection import HOOKED, find_injection
from capaboost_core.plan import in_prefix
from capaboost_core.wrappers import unwrap


class Task(Protocol):
    """Examples to train on, with their loss and their metrics.

    A task may have further methods. `fingerprint() -> str` is the `content_hash` of the rows and labels that it trains
    and selects on; a run does not resume once they have changed. `write_report(folder)` is called after `test` and
    writes files for readers beside the result. `trial(model) -> Tensor` is the mean loss of a few rows that need the
    most memory, such as the longest, after a pass over rows that are only evaluated.

    Attributes:
        unit: The noun for examples, such as `images`.
        examples: The number of training examples of an epoch.
    """

    unit: str
    examples: int

    def batches(self, epoch: int) -> Sequence[Any]:
        """Global batches of examples in an order that depends on (seed, epoch) only; each can be sliced."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of (a slice of) a batch."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics after an epoch, equal in every process; may be empty."""
        ...

    def test(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the test split, equal in every process; called once, after training."""
        ...


def content_hash(arrays: Iterable[np.ndarray]) -> str:
    """Twelve hexadecimal digits that change with any value, shape or type of the arrays, or their order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]


Made = TypeVar("Made")
MAX_CACHED = 4  # values; decoded training images are 150 MB a task at 224 px
CONFUSION = "confusion.csv"

_made: OrderedDict[Hashable, Any] | None = None  # None unless several runs of one process share what they make


def keep_cached() -> None:
    """From now on `cached` stores what it makes. A single run does not, since its data may change between runs."""
    global _made
    _made = OrderedDict() if _made is None else _made


def cached(key: Hashable, make: Callable[[], Made]) -> Made:
    """The value of a key: after `keep_cached` the stored one, else a new one. Callers must not change it."""
    if _made is None:
        return make()
    if key not in _made:
        _made[key] = make()
    _made.move_to_end(key)
    while len(_made) > MAX_CACHED:
        _made.popitem(last=False)
    return _made[key]


def write_confusion(folder: Path, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Write a row for each true class: name, number of rows, accuracy in percent, and predictions of each class.

    Args:
        folder: Folder of the run.
        classes: Names in the order of the labels.
        counts: (true class, predicted class).
    """
    rows: list[list[object]] = [["class", "rows", "accuracy", *classes]]
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        rows.append([name, sum(row), f"{100 * row[i] / sum(row):.2f}" if sum(row) else "", *row])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(folder / CONFUSION, lambda file: file.write(text.getvalue().encode()))


class Hooks:
    """The hooks of a model's method that a loop calls around its steps; a model without an adapter has none."""

    def __init__(self, model: nn.Module):
        self.model = unwrap(model)
        injection = find_injection(model)
        self.method = injection.config if injection else None
        self.head = injection.plan.head if injection else ()
        if injection:
            setattr(self.model, HOOKED, True)

    def is_head(self, name: str) -> bool:
        """Whether a parameter belongs to the head, which every method trains."""
        return any(in_prefix(name, prefix) for prefix in self.head)

    def lr_factor(self, name: str) -> float:
        return self.method.lr_factor(name) if self.method else 1.0

    def objective(self, loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
        return self.method.objective(loss_of, model, batch) if self.method else loss_of(model, batch)

    def penalty(self) -> Tensor | None:
        return self.method.penalty(self.model) if self.method else None

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        if self.method:
            self.method.after_step(self.model, step, steps)

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        return self.method.state(self.model) if self.method else {}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        if self.method and state:
            self.method.load_state(self.model, state)
