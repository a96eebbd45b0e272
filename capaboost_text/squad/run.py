"""The configuration of a SQuAD run: its sections, and which file they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from capaboost_core.methods import Method
from capaboost_core.settings.base import Settings, Text
from capaboost_core.training.run_folder import run_folder
from capaboost_core.training.train_section import TrainSection
from capaboost_text.model_section import ModelSection
from capaboost_text.squad.data import find_source


class SquadSection(Settings):
    """The questions and what is reported on them.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    dataset: Text = Field(description="squad_v1 or squad_v2.")
    dir: Text | None = Field(
        None, json_schema_extra={"null": "the hub"}, description="A folder with the official JSON files."
    )
    protocol: Literal["test", "select"] = Field(
        "test",
        description="test: dev is the test set, and the last epoch counts, as in the paper; select: half of dev "
        "selects the epoch, the other half is the test set.",
    )
    max_length: int = Field(384, ge=8, le=1_000_000, description="Tokens of a window.")
    stride: int = Field(128, ge=0, description="Context tokens that consecutive windows share.")
    max_train_rows: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"null": "all"},
        description="Train on at most so many questions, always the same ones.",
    )
    max_dev_rows: int | None = Field(
        None,
        ge=2,
        json_schema_extra={"null": "all"},
        description="Select and test on at most so many questions of dev, always the same ones.",
    )

    @field_validator("dataset")
    @classmethod
    def _check_dataset(cls, name: str) -> str:
        find_source(name)
        return name


@dataclass(frozen=True)
class SquadRun:
    """All settings of a run."""

    selecting = "select"

    model: ModelSection
    data: SquadSection
    train: TrainSection
    adapter: Method

    def default_folder(self) -> Path:
        """The default folder of the run."""
        return run_folder("squad", self.data.dataset, self.model.name, self.adapter, self.train.seed)


def config_file(folder: Path, dataset: str) -> Path:
    """The largest budget of Table 14 on the data set.

    Raises:
        UserError: If there is no such data set.
    """
    find_source(dataset)
    return folder / f"{dataset.removeprefix('squad_')}_padapter_64.yaml"
