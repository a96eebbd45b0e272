"""The tasks of GLUE with their metrics, and the section `data` of a run on one of them or on a user's own data."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from capaboost_core.errors import UserError
from capaboost_core.settings import Settings, Text, Texts, refuse

# The functions below import scikit-learn and scipy, which take a second that help and checks of settings need not.


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1; 0 where nothing is predicted or labelled so."""
    from sklearn.metrics import f1_score

    zero: Any = 0.0  # the stub of scikit-learn knows the texts alone
    return float(f1_score(labels, predictions, zero_division=zero))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions)) if _vary(predictions, labels) else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if not _vary(predictions, labels):
        return 0.0
    return float(
        np.asarray(pearsonr(predictions.astype(np.float64), labels))[0]
    )  # float32 loses digits near a constant


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(np.asarray(spearmanr(predictions, labels))[0]) if _vary(predictions, labels) else 0.0


def pearson_spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    metric.__name__: metric for metric in (accuracy, f1, matthews, pearson, spearman, pearson_spearman)
}


def compute_metrics(names: Sequence[str], predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """The named metrics in percent.

    A correlation with a constant is 0, and so is one with predictions that are not all finite: selection
    then never prefers a model that has collapsed or diverged.

    Args:
        names: Keys of METRICS.
        predictions: Classes, or scores for the correlations; one a row.
        labels: The same of the truth.

    Raises:
        ValueError: If there are no rows, or not one prediction for each label.
    """
    predicted, expected = np.asarray(predictions), np.asarray(labels)
    if predicted.shape != expected.shape or expected.ndim != 1 or not expected.size:
        raise ValueError(f"predictions have shape {predicted.shape}, labels {expected.shape}; give one value a row")
    return {name: 100 * METRICS[name](predicted, expected) for name in names}


def _vary(predictions: np.ndarray, labels: np.ndarray) -> bool:
    """Whether a correlation is defined: the libraries warn or give NaN where it is not.

    What varies in its twelfth digit only is rounding, and a constant too.
    """
    return all(np.isfinite(x).all() and np.ptp(x) > 1e-11 * np.abs(x).max() for x in (predictions, labels))


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


SENTENCES = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
COLA_COLUMNS = ("source", "label", "mark", "sentence")
GLUE_TASKS = (  # the eight of the paper
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
        texts=SENTENCES,
        tsv_texts=("#1 String", "#2 String"),
        tsv_label="Quality",
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        small=True,
    ),
    GlueTask(
        name="stsb",
        folder="STS-B",
        texts=SENTENCES,
        tsv_texts=SENTENCES,
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
        tsv_texts=SENTENCES,
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
        texts=SENTENCES,
        tsv_texts=SENTENCES,
        tsv_label="label",
        labels=ENTAILMENT,
        spelled=True,
        small=True,
    ),
)
TASKS = {task.name: task for task in GLUE_TASKS}


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


CORRELATIONS = ("pearson_spearman", "pearson", "spearman")
OWN_SETTINGS = ("hub", "subset", "train", "selection", "test", "texts", "label", "classes", "metrics")


class GlueDataSection(Settings):
    """The texts and what is reported on them.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range, or of data of another kind.
    """

    task: Text = Field(description="cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte; or a name for data of your own.")
    dir: Text | None = Field(
        None,
        json_schema_extra={"null": "the hub"},
        description="A folder with the original GLUE folders, or with your own files (null: the current one).",
    )
    protocol: Literal["propetl", "adalora", "select", "test"] = Field(
        "propetl",
        description="propetl: an epoch is selected on rows of their own (Table 2); adalora: dev is the test set, and "
        "the last epoch counts (Table 3). Of your own data, select: the epoch that is best on the selection split "
        "(the default if there is one); test: the last epoch counts.",
    )
    max_length: int = Field(128, ge=8, le=1_000_000, description="Tokens of the longest row.")
    max_train_rows: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"null": "all"},
        description="Train on so many rows at most, always the same.",
    )
    hub: Text | None = Field(None, description="Your own data: their name on the hub, in place of files.")
    subset: Text | None = Field(None, description="Your own data: the subset on the hub, where there are several.")
    train: Text | None = Field(
        None, description="Your own data: the file to train on (.tsv, .csv or .jsonl), or the split of the hub."
    )
    selection: Text | None = Field(None, description="Your own data: likewise to select the epoch on, if any.")
    test: Text | None = Field(None, description="Your own data: likewise to test on.")
    holdout: float = Field(
        0.2, gt=0, lt=1, description="Your own data without a test split: the share of each class held out to test on."
    )
    texts: Text | Texts | None = Field(None, description="Your own data: the column of the text, or two of a pair.")
    label: Text | None = Field(None, description="Your own data: the column to predict.")
    classes: int | Texts | None = Field(
        None,
        json_schema_extra={"null": "a number to predict"},
        description="Your own data: names of the classes as the column has them, or how many where it has indices "
        "from 0.",
    )
    metrics: Text | Texts | None = Field(
        None,
        json_schema_extra={"null": "accuracy, or the correlations of a number"},
        description=f"Your own data: what is reported, and first what selects: {', '.join(METRICS)}.",
    )

    @property
    def is_own(self) -> bool:
        """Whether the data are none of GLUE's."""
        return self.task not in TASKS

    @property
    def columns(self) -> tuple[str, ...]:
        """Of one's own data: the columns of the texts."""
        return _several(self.texts)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of one's own data: the classes as the column has them; none of a number."""
        named = self.classes
        return tuple(map(str, range(named))) if isinstance(named, int) else _several(named)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of one's own data: what is reported, and first what selects."""
        return _several(self.metrics) or (("accuracy",) if self.class_names else CORRELATIONS)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        given = [name for name in OWN_SETTINGS if getattr(self, name) is not None]
        if not self.is_own or not given:
            find_task(self.task)  # refuses a name that is none of GLUE's
            for name in given:
                refuse(name, getattr(self, name), f"{self.task} is a task of GLUE; give data of your own another name")
            if self.protocol in ("select", "test"):
                refuse("protocol", self.protocol, f"for {self.task} type propetl or adalora")
            return self
        self._check_own()
        return self

    def _check_own(self) -> None:
        for name in ("train", "texts", "label"):
            if getattr(self, name) is None:
                refuse(name, None, f"your own data {self.task} need it; docs/text.md has an example")
        if self.hub and self.dir:
            refuse("dir", self.dir, "data of the hub have none; leave dir or hub out")
        if self.subset and not self.hub:
            refuse("subset", self.subset, "only data of the hub have one; set hub, or leave it out")
        if len(self.columns) > 2 or len({*self.columns, self.label}) <= len(self.columns):
            refuse("texts", self.texts, "type one column or two, other than the label's and than each other")
        names = self.class_names
        if self.classes is not None and (len(names) < 2 or len({*names}) < len(names)):
            refuse("classes", self.classes, "type two or more different names, or how many: 2 or more")
        self._check_metrics()
        self._check_protocol()

    def _check_metrics(self) -> None:
        classes = len(self.class_names)
        fitting = [n for n in METRICS if (n in CORRELATIONS) == (not classes) and (n != "f1" or classes == 2)]
        found = self.metric_names
        if not {*found} <= {*fitting} or len({*found}) < len(found):
            kind = f"{classes} classes" if classes else "a number"
            refuse("metrics", self.metrics, f"of {kind} type one or several of: {', '.join(fitting)}")

    def _check_protocol(self) -> None:
        if "protocol" not in self.model_fields_set:
            self.derive("protocol", "select" if self.selection else "test")
        elif self.protocol not in ("select", "test"):
            refuse("protocol", self.protocol, "that is one of GLUE's; type select or test, or leave it out")
        elif self.protocol == "select" and not self.selection:
            refuse("protocol", self.protocol, "give a selection split, or type test")


def _several(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value or ()
