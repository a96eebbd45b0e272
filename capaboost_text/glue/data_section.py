"""The section `data`: a GLUE task, or a data set of one's own."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from capaboost_core.settings.base import Settings, Text, Texts, refuse
from capaboost_text.glue.metrics import METRICS
from capaboost_text.glue.tasks import TASKS, find_task

OF_NUMBERS = ("pearson_spearman", "pearson", "spearman")
OWN = ("hub", "subset", "train", "selection", "test", "texts", "label", "classes", "metrics")


class DataSection(Settings):
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
        return _several(self.metrics) or (("accuracy",) if self.class_names else OF_NUMBERS)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        given = [name for name in OWN if getattr(self, name) is not None]
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
        fitting = [n for n in METRICS if (n in OF_NUMBERS) == (not classes) and (n != "f1" or classes == 2)]
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
