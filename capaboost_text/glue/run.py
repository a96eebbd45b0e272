"""The configuration of a GLUE run: its sections, and which file they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from capaboost_core.methods import Method, resolve_config
from capaboost_core.training.run_folder import run_folder
from capaboost_core.training.train_section import TrainSection
from capaboost_text.glue.data_section import DataSection
from capaboost_text.glue.tasks import find_task
from capaboost_text.model_section import ModelSection

DEBERTA, ROBERTA = "deberta-v3-base", "roberta-base"


@dataclass(frozen=True)
class GlueRun:
    """All settings of a run."""

    model: ModelSection
    data: DataSection
    train: TrainSection
    adapter: Method

    @property
    def selecting(self) -> str:
        """The protocol that selects an epoch."""
        return "select" if self.data.is_own else "propetl"

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
