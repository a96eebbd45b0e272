"""The configuration of a VTAB run: its sections, and which file and flags they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capaboost_core.config import CapaBoostConfig, resolve_config
from capaboost_core.results import method_name
from capaboost_core.run_config import (
    Raw,
    TrainSection,
    build_run,
    merge_settings,
    parse_assignments,
    read_config,
    require,
    scale_warmup,
)


@dataclass(frozen=True)
class ModelSection:
    """The frozen model.

    Attributes:
        name: As timm has it.
        weights: A local file with the pretrained weights, in place of timm's source.
        pretrained: Off, the model starts from random weights.

    Raises:
        UserError: If a value is out of range.
    """

    name: str = "vit_base_patch16_224.orig_in21k"
    weights: str | None = None
    pretrained: bool = True
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        rate = self.drop_path_rate
        require("model.drop_path_rate", rate, "a number from 0 to below 1", 0 <= rate < 1)
        both = "true, or leave model.weights out" if self.weights else "true or false"
        require("model.pretrained", self.pretrained, both, self.pretrained or not self.weights)


@dataclass(frozen=True)
class DataSection:
    """The images and what is reported on them.

    Attributes:
        num_classes: None takes the task's own number.
        normalize: Pixel statistics: the `model`'s own, `imagenet`'s, or `none` (values from 0 to 1).
        protocol: `test`: train on train800val200, test after the last epoch; `select`: train on
            train800, test the weights of the epoch that is best on val200.

    Raises:
        UserError: If a value is out of range.
    """

    dataset: str
    source: Literal["tfds", "folder", "digits"] = "tfds"
    dir: str | None = None
    num_classes: int | None = None
    normalize: Literal["model", "imagenet", "none"] = "model"
    protocol: Literal["test", "select"] = "test"

    def __post_init__(self) -> None:
        plain = bool(self.dataset) and self.dataset == Path(self.dataset).name
        require("data.dataset", self.dataset, "a task's name, without folders", plain)
        count = self.num_classes
        require("data.num_classes", count, "a whole number of 2 or more", count is None or count >= 2)


@dataclass(frozen=True)
class VtabRun:
    """All settings of a run."""

    model: ModelSection
    data: DataSection
    train: TrainSection
    adapter: CapaBoostConfig

    @property
    def method(self) -> str:
        return method_name(self.adapter)

    def default_folder(self) -> Path:
        """Where the run lives unless told otherwise."""
        model = "".join(c if c.isalnum() or c in "._-" else "_" for c in self.model.name)
        return Path("runs/vtab") / self.data.dataset / model / f"{self.method}-seed{self.train.seed}"


def config_file(folder: Path, dataset: str) -> Path:
    """The dataset's own file, or the base file where it has none."""
    own = folder / f"{dataset}.yaml"
    return own if own.is_file() and not dataset.startswith("_") else folder / "_base.yaml"


def load_run(path: Path, flags: Raw, method: str | None, assignments: list[str]) -> VtabRun:
    """The file's settings, under the flags', under the preset `method`'s, under those of `--set`.

    Raises:
        UserError: If anything is unknown, of a wrong type or out of range.
    """
    settings = read_config(path)
    changes = merge_settings(flags, preset_settings(method) if method else {}, parse_assignments(assignments))
    return build_run(VtabRun, merge_settings(settings, scale_warmup(settings, changes)))


def preset_settings(method: str) -> Raw:
    """What a preset says on the method; r, dropout and seed stay as the config has them.

    Raises:
        UserError: If there is no such preset.
    """
    preset = resolve_config(method)
    return {"adapter": {name: getattr(preset, name) for name in ("method", "num_tied", "density")}}
