"""The configuration of a SQuAD run: its sections, and which file they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capaboost_core.config import CapaBoostConfig
from capaboost_core.training.results import run_folder
from capaboost_core.training.train_section import TrainSection, require
from capaboost_text.glue.run import ModelSection
from capaboost_text.squad.data import find_source


@dataclass(frozen=True)
class SquadSection:
    """The questions and what is reported on them.

    Attributes:
        dir: A folder with the official JSON files; None loads from the hub.
        protocol: `test`: dev is the test set, and the last epoch counts, as in the paper; `select`: half of
            dev selects the epoch, the other half is the test set.
        max_length: Tokens of a window.
        stride: Context tokens that consecutive windows share.
        max_train_rows: Train on at most so many questions, always the same ones.
        max_dev_rows: Likewise of the dev split.

    Raises:
        UserError: If a value is out of range.
    """

    dataset: str
    dir: str | None = None
    protocol: Literal["test", "select"] = "test"
    max_length: int = 384
    stride: int = 128
    max_train_rows: int | None = None
    max_dev_rows: int | None = None

    def __post_init__(self) -> None:
        find_source(self.dataset)
        for name, low in (("max_train_rows", 1), ("max_dev_rows", 2)):
            rows = getattr(self, name)
            require(f"data.{name}", rows, f"a whole number of {low} or more, or null", rows is None or rows >= low)


@dataclass(frozen=True)
class SquadRun:
    """All settings of a run."""

    selecting = "select"

    model: ModelSection
    data: SquadSection
    train: TrainSection
    adapter: CapaBoostConfig

    def default_folder(self) -> Path:
        """Where the run lives unless told otherwise."""
        return run_folder("squad", self.data.dataset, self.model.name, self.adapter, self.train.seed)


def config_file(folder: Path, dataset: str) -> Path:
    """The largest budget of Table 14 on the data set.

    Raises:
        UserError: If there is no such data set.
    """
    find_source(dataset)
    return folder / f"{dataset.removeprefix('squad_')}_padapter_64.yaml"
