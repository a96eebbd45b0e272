"""The configuration of a GLUE run: its sections, and which file they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capaboost_core.config import CapaBoostConfig
from capaboost_core.training.results import run_folder
from capaboost_core.training.train_section import TrainSection, require
from capaboost_text.glue.tasks import find_task

DEBERTA, ROBERTA = "deberta-v3-base", "roberta-base"


@dataclass(frozen=True)
class ModelSection:
    """The frozen encoder: a name on the hub, or a folder that `save_pretrained` wrote."""

    name: str


@dataclass(frozen=True)
class GlueSection:
    """The sentences and what is reported on them.

    Attributes:
        dir: A folder with the original GLUE folders; None loads from the hub.
        protocol: `propetl`: an epoch is selected on rows of their own (Table 2); `adalora`: dev is the
            test set, and the last epoch counts (Table 3).
        max_length: Tokens of the longest row.
        max_train_rows: Train on at most so many rows, always the same ones.

    Raises:
        UserError: If a value is out of range.
    """

    task: str
    dir: str | None = None
    protocol: Literal["propetl", "adalora"] = "propetl"
    max_length: int = 128
    max_train_rows: int | None = None

    def __post_init__(self) -> None:
        find_task(self.task)
        require("data.max_length", self.max_length, "a whole number of 8 or more", self.max_length >= 8)
        rows = self.max_train_rows
        require("data.max_train_rows", rows, "a whole number of 1 or more, or null", rows is None or rows >= 1)


@dataclass(frozen=True)
class GlueRun:
    """All settings of a run."""

    selecting = "propetl"

    model: ModelSection
    data: GlueSection
    train: TrainSection
    adapter: CapaBoostConfig

    def default_folder(self) -> Path:
        """Where the run lives unless told otherwise."""
        return run_folder("glue", self.data.task, self.model.name, self.adapter, self.train.seed)


def family_of(model: str | None) -> str:
    """Whose settings a model has: DeBERTaV3-base its own, any other RoBERTa-base's."""
    return DEBERTA if model and model.endswith(DEBERTA) else ROBERTA


def config_file(folder: Path, task: str, model: str | None, method: str | None) -> Path:
    """The paper's settings of the model's family and the method's kind.

    Adapters and prefixes have the PAdapter's settings, all other methods LoRA's.

    Raises:
        UserError: If there is no such task.
    """
    family = family_of(model)
    kind = "padapter" if method and method.endswith(("adapter", "prefix")) else "lora"
    return folder / family / f"{find_task(task).name}-{kind}.yaml"
