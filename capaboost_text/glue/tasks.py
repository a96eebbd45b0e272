"""The eight GLUE tasks of the paper: their texts, labels, metrics and files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from numpy.typing import ArrayLike

from capaboost_core.errors import UserError
from capaboost_text.glue.metrics import compute_metrics

DEV = {"train": "train", "dev": "validation"}
MNLI_DEV = {"train": "train", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """What a classification or a regression of texts predicts, and how that is scored.

    Attributes:
        name: What it is called in results.
        labels: Names of the classes in the order of their indices; none for regression.
        metrics: What is reported, and first what decides.
    """

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)

    @property
    def primary(self) -> str:
        """The metric that selection maximises."""
        return self.metrics[0]

    @property
    def regression(self) -> bool:
        return not self.labels

    def score(self, predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
        """The task's metrics in percent, of class indices or, in a regression, of numbers.

        Raises:
            ValueError: If there is not one prediction for each label.
        """
        return compute_metrics(self.metrics, predictions, labels)


@dataclass(frozen=True, kw_only=True)
class GlueTask(TextTask):
    """One task, as the original TSV files and the hub have it.

    Attributes:
        folder: Its folder of TSV files.
        texts: The hub's columns of one text or a pair.
        tsv_texts: The same in the TSV files.
        tsv_label: The TSV files' column of the label.
        splits: The hub's name of each labelled split; the keys name the TSV files, the second is the dev split.
        spelled: Whether the TSV files name the classes; else they give the index.
        tsv_columns: All columns of the TSV files where these have no header.
        small: The `propetl` protocol halves the dev split, and leaves the training rows whole.
        broken_rows: How many rows of an original file may have too few columns.
    """

    folder: str
    texts: tuple[str, ...]
    tsv_texts: tuple[str, ...]
    tsv_label: str
    splits: Mapping[str, str] = field(default_factory=lambda: DEV)
    spelled: bool = False
    tsv_columns: tuple[str, ...] | None = None
    small: bool = False
    broken_rows: int = 0

    @property
    def dev(self) -> str:
        """The split that the protocols test on."""
        return list(self.splits)[1]

    @property
    def tsv_labels(self) -> tuple[str, ...]:
        """How the TSV files write each class."""
        return self.labels if self.spelled else tuple(str(i) for i in range(len(self.labels)))


PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
COLA_COLUMNS = ("source", "label", "mark", "sentence")
ALL = (
    GlueTask(
        name="cola",
        folder="CoLA",
        texts=("sentence",),
        tsv_texts=("sentence",),
        tsv_label="label",
        labels=("unacceptable", "acceptable"),
        metrics=("matthews",),
        tsv_columns=COLA_COLUMNS,
        small=True,
    ),
    GlueTask(
        name="sst2",
        folder="SST-2",
        texts=("sentence",),
        tsv_texts=("sentence",),
        tsv_label="label",
        labels=("negative", "positive"),
    ),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        texts=PAIR,
        tsv_texts=("#1 String", "#2 String"),
        tsv_label="Quality",
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        small=True,
    ),
    GlueTask(
        name="stsb",
        folder="STS-B",
        texts=PAIR,
        tsv_texts=PAIR,
        tsv_label="score",
        labels=(),
        metrics=("pearson_spearman", "pearson", "spearman"),
        small=True,
    ),
    GlueTask(
        name="qqp",
        folder="QQP",
        texts=QUESTIONS,
        tsv_texts=QUESTIONS,
        tsv_label="is_duplicate",
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        broken_rows=50,  # questions with a line break; the hub's rows leave these out as well
    ),
    GlueTask(
        name="mnli",
        folder="MNLI",
        texts=("premise", "hypothesis"),
        tsv_texts=PAIR,
        tsv_label="gold_label",
        labels=("entailment", "neutral", "contradiction"),
        splits=MNLI_DEV,
        spelled=True,
    ),
    GlueTask(
        name="qnli",
        folder="QNLI",
        texts=("question", "sentence"),
        tsv_texts=("question", "sentence"),
        tsv_label="label",
        labels=ENTAILMENT,
        spelled=True,
    ),
    GlueTask(
        name="rte",
        folder="RTE",
        texts=PAIR,
        tsv_texts=PAIR,
        tsv_label="label",
        labels=ENTAILMENT,
        spelled=True,
        small=True,
    ),
)
TASKS = {task.name: task for task in ALL}


def find_task(name: str) -> GlueTask:
    """The task of a name.

    Raises:
        UserError: If there is none.
    """
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(str(name).lower(), TASKS, n=1)
    hint = (
        f"did you mean {close[0]}?"
        if close
        else f"type one of: {', '.join(TASKS)}, or describe data of your own in --config"
    )
    raise UserError(f"unknown task {name!r}; {hint}")
