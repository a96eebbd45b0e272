"""The configuration of a VTAB run: its sections, and which file and flags they come from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from capaboost_core.config import CapaBoostConfig
from capaboost_core.errors import UserError
from capaboost_core.training.results import run_folder
from capaboost_core.training.train_section import TrainSection, require

EMBEDDED = "capaboost_vit_micro_patch8_64"
OWN_SETTINGS = ("num_classes", "drop_path_rate", "img_size", "pretrained")  # of timm's keywords


@dataclass(frozen=True)
class ModelSection:
    """The frozen model.

    Attributes:
        name: As timm has it.
        weights: A local file with the pretrained weights, in place of timm's source.
        pretrained: Off, the model starts from random weights.
        img_size: Pixels a side of the images; None is what the model has been pretrained on.
        kwargs: Any other keyword of the timm model, such as `{dynamic_img_size: true}`.

    Raises:
        UserError: If a value is out of range.
    """

    name: str = "vit_base_patch16_224.orig_in21k"
    weights: str | None = None
    pretrained: bool = True
    drop_path_rate: float = 0.1
    img_size: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rate = self.drop_path_rate
        require("model.drop_path_rate", rate, "a number from 0 to below 1", 0 <= rate < 1)
        both = "true, or leave model.weights out" if self.weights else "true or false"
        require("model.pretrained", self.pretrained, both, self.pretrained or not self.weights)
        size = self.img_size
        require("model.img_size", size, "a whole number of 1 or more, or null", size is None or size >= 1)
        taken = next((name for name in OWN_SETTINGS if name in self.kwargs), None)
        if taken:
            place = "data" if taken == "num_classes" else "model"
            raise UserError(f"model.kwargs.{taken} has a setting of its own; type {place}.{taken}")

    def arguments(self) -> dict[str, Any]:
        """The keywords of the timm model, but for its name, weights and classes."""
        size = {} if self.img_size is None else {"img_size": self.img_size}
        return {"drop_path_rate": self.drop_path_rate, **size, **self.kwargs}


@dataclass(frozen=True)
class DataSection:
    """The images and what is reported on them.

    Attributes:
        num_classes: None takes the task's own number.
        normalize: Pixel statistics: `imagenet`'s, the `model`'s own, or `none` (values from 0 to 1). `auto` is
            `imagenet`, as in the paper (appendix F), NOAH and FacT; for the embedded backbone its own.
        protocol: `test`: train on train800val200, test after the last epoch; `select`: train on
            train800, test the weights of the epoch that is best on val200.

    Raises:
        UserError: If a value is out of range.
    """

    dataset: str
    source: Literal["tfds", "folder", "digits"] = "tfds"
    dir: str | None = None
    num_classes: int | None = None
    normalize: Literal["auto", "imagenet", "model", "none"] = "auto"
    protocol: Literal["test", "select"] = "test"

    def __post_init__(self) -> None:
        plain = bool(self.dataset) and self.dataset == Path(self.dataset).name
        require("data.dataset", self.dataset, "a task's name, without folders", plain)
        count = self.num_classes
        require("data.num_classes", count, "a whole number of 2 or more", count is None or count >= 2)


@dataclass(frozen=True)
class VtabRun:
    """All settings of a run; `data.normalize` says what `auto` is for the model."""

    selecting = "select"

    model: ModelSection
    data: DataSection
    train: TrainSection
    adapter: CapaBoostConfig

    def __post_init__(self) -> None:
        if self.data.normalize == "auto":
            own = self.model.name.split(".")[0] == EMBEDDED
            data = replace(self.data, normalize="model" if own else "imagenet")
            object.__setattr__(self, "data", data)

    def default_folder(self) -> Path:
        """Where the run lives unless told otherwise."""
        return run_folder("vtab", self.data.dataset, self.model.name, self.adapter, self.train.seed)


def config_file(folder: Path, dataset: str) -> Path:
    """The dataset's own file, or the base file where it has none."""
    own = folder / f"{dataset}.yaml"
    return own if own.is_file() and not dataset.startswith("_") else folder / "_base.yaml"
