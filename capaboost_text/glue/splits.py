"""The paper's two protocols on GLUE: what is trained on, selected on and tested on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from capaboost_core.errors import UserError
from capaboost_text.example import Example
from capaboost_text.glue.load import check_choice, load_split
from capaboost_text.glue.tasks import TASKS, GlueTask, TextTask, find_task
from capaboost_text.permutation import halve, permutation

__all__ = ["PROTOCOLS", "TASKS", "Example", "GlueTask", "Splits", "find_task", "load_split", "splits"]

PROTOCOLS = ("propetl", "adalora")
SELECTION_ROWS = 1000


@dataclass(frozen=True)
class Splits:
    """What a run trains on, selects on (None: the last epoch counts) and is tested on.

    `mismatched` is MNLI's second dev split, tested in addition to the first.
    """

    train: list[Example]
    selection: list[Example] | None
    test: list[Example]
    mismatched: list[Example] | None = None


def splits(task: str, protocol: str, data_dir: str | Path | None = None, max_train_rows: int | None = None) -> Splits:
    """The splits of a protocol.

    `propetl` (Table 2 of arXiv 2407.01320): CoLA, RTE, MRPC and STS-B permute the dev split and select on
    its first half, testing on the second; the others select on 1,000 training rows, which training then
    lacks, and test on dev. `adalora` (Table 3): dev is the test set, and nothing is selected.

    Args:
        task: A key of TASKS.
        protocol: One of PROTOCOLS.
        data_dir: A folder with the original GLUE folders; None loads from the hub.
        max_train_rows: Train on at most so many rows, always the same ones; the other splits stay whole.

    Raises:
        UserError: If a setting is unknown, the data cannot be had, a row is malformed, there are too few
            rows for the protocol, or all to train on are of one class.
    """
    found = find_task(task)
    check_choice("protocol", protocol, PROTOCOLS)
    if max_train_rows is not None and (not isinstance(max_train_rows, int) or max_train_rows < 1):
        raise UserError(f"max_train_rows is {max_train_rows!r}; type a whole number of 1 or more, or leave it out")
    parts = {name: load_split(task, data_dir, name) for name in found.splits}
    train, selection, test = parts["train"], None, parts[found.dev]
    order = permutation(len(train))
    if protocol == "propetl" and found.small:
        _check_enough(task, "dev", len(test), 2)
        selection, test = halve(test)
    elif protocol == "propetl":
        _check_enough(task, "training", len(train), SELECTION_ROWS + 1)
        selection, order = [train[i] for i in order[:SELECTION_ROWS]], order[SELECTION_ROWS:]
    training = [train[i] for i in order[:max_train_rows]]
    check_classes(found, training, max_train_rows)
    return Splits(training, selection, test, parts.get("dev_mismatched"))


def check_classes(task: TextTask, training: list[Example], max_train_rows: int | None) -> None:
    """Refuse rows to train on of which nothing can be learned.

    Raises:
        UserError: If all are of one class.
    """
    if not task.regression and len({example.label for example in training}) < 2:
        raise UserError(
            f"{task.name} has training rows of one class only; give rows of two or more"
            + ("" if max_train_rows is None else ", or raise max_train_rows")
        )


def _check_enough(task: str, kind: str, count: int, needed: int) -> None:
    if count < needed:
        raise UserError(
            f"{task} has {count} {kind} rows, but protocol propetl needs {needed}; "
            "give the whole file, or set the protocol to adalora"
        )
