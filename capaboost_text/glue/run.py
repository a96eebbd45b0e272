"""The configuration of a GLUE run: its sections, and which file they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from capaboost_core.methods import Method, resolve_config
from capaboost_core.settings.base import Settings, Text
from capaboost_core.training.run_folder import run_folder
from capaboost_core.training.train_section import TrainSection
from capaboost_text.glue.tasks import find_task
from capaboost_text.model_section import ModelSection

DEBERTA, ROBERTA = "deberta-v3-base", "roberta-base"


class GlueSection(Settings):
    """The sentences and what is reported on them.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    task: Text = Field(description="cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte.")
    dir: Text | None = Field(
        None, json_schema_extra={"null": "the hub"}, description="A folder with the original GLUE folders."
    )
    protocol: Literal["propetl", "adalora"] = Field(
        "propetl",
        description="propetl: an epoch is selected on rows of their own (Table 2); adalora: dev is the test set, and "
        "the last epoch counts (Table 3).",
    )
    max_length: int = Field(128, ge=8, le=1_000_000, description="Tokens of the longest row.")
    max_train_rows: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"null": "all"},
        description="Train on so many rows at most, always the same.",
    )

    @field_validator("task")
    @classmethod
    def _check_task(cls, name: str) -> str:
        find_task(name)
        return name


@dataclass(frozen=True)
class GlueRun:
    """All settings of a run."""

    selecting = "propetl"

    model: ModelSection
    data: GlueSection
    train: TrainSection
    adapter: Method

    def default_folder(self) -> Path:
        """The default folder of the run."""
        return run_folder("glue", self.data.task, self.model.name, self.adapter, self.train.seed)


def family_of(model: str | None) -> str:
    """The family whose settings a model uses: DeBERTaV3-base its own, any other model RoBERTa-base's."""
    return DEBERTA if model and model.endswith(DEBERTA) else ROBERTA


def config_file(folder: Path, task: str, model: str | None, method: str | None) -> Path:
    """The paper's settings of the model's family and the method's kind.

    Methods without their own settings files use those of their `recipe`.

    Raises:
        UserError: If there is no such task or preset.
    """
    family = family_of(model)
    kind = resolve_config(method).recipe if method else Method.recipe
    return folder / family / f"{find_task(task).name}-{kind}.yaml"
