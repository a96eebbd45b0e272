"""The settings of runs of all tasks: their sections, and the file of configs/ that they start from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from capaboost.training.run_folder import run_folder
from capaboost.training.settings import TrainSection
from capaboost_core.errors import UserError
from capaboost_core.methods import Method, resolve_config
from capaboost_core.settings import Settings, Text, refuse
from capaboost_text.glue.tasks import GlueDataSection, find_task
from capaboost_text.squad.data import find_source

# Folders that come with the package: settings files and the paper's tables.


def shipped(name: str) -> Path:
    """`configs` or `results/paper`: in the package where it is installed, at the root of a checkout.

    Raises:
        UserError: If it is in neither of them.
    """
    package = Path(str(files("capaboost")))
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise UserError(
        f"the folder {name} of capaboost is missing; install capaboost again, or run in a complete checkout"
    )


# Policies as timm writes them; it would pass over a part without a number.
POLICY = re.compile(r"basic|(originalr?|v0r?|3a)(-mstd\d[\d.]*)?|(rand|augmix)(-[a-z]+\d[\d.]*|-t(weights|3aw?))*")
TIMM_KEYWORDS = ("num_classes", "drop_path_rate", "img_size", "pretrained")  # those with a setting of their own
DEBERTA, ROBERTA = "deberta-v3-base", "roberta-base"  # the families that configs/glue has settings of


class TextModelSection(Settings):
    """The frozen model.

    Raises:
        UserError: If a setting is unknown or of a wrong type.
    """

    name: Text = Field(description="A name on the hub, or a folder that save_pretrained wrote.")


class VisionModelSection(Settings):
    """The frozen model.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    name: Text = Field("vit_base_patch16_224.orig_in21k", description="Name of the model, as timm has it.")
    weights: Text | None = Field(
        None, description="A local file with the pretrained weights, in place of timm's source."
    )
    pretrained: bool = Field(True, description="false: the model starts from random weights.")
    drop_path_rate: float = Field(
        0.1, ge=0, lt=1, examples=["0.1"], description="Probability of leaving a block out of a training step."
    )
    img_size: int | None = Field(
        None,
        ge=1,
        le=65536,
        json_schema_extra={"null": "what the model was pretrained on"},
        description="Pixels a side of the images.",
    )
    kwargs: dict[str, Any] = Field({}, description="Any other keyword of the timm model.")

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights and not self.pretrained:
            refuse("pretrained", self.pretrained, "type true, or leave model.weights out")
        return self

    @field_validator("kwargs")
    @classmethod
    def _check_own(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        taken = next((name for name in TIMM_KEYWORDS if name in kwargs), None)
        if taken:
            section = "data" if taken == "num_classes" else "model"
            raise ValueError(f"model.kwargs.{taken} has a setting of its own; type {section}.{taken}")
        if kwargs.get("features_only"):
            raise ValueError("model.kwargs.features_only makes a model without a head; leave it out")
        return kwargs

    def arguments(self) -> dict[str, Any]:
        """The keywords of the timm model, but for its name, weights and classes."""
        size = {} if self.img_size is None else {"img_size": self.img_size}
        return {"drop_path_rate": self.drop_path_rate, **size, **self.kwargs}


class VisionDataSection(Settings):
    """The images and what is reported on them.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    dataset: Text = Field(description="Name of the task, without folders.")
    source: Literal["tfds", "folder", "images", "digits", "rendered"] = Field(
        "tfds", description="Where the images come from."
    )
    dir: Text | None = Field(
        None, description="Folder of the tfds data, of the task folders, or of images of your own, or their table."
    )
    holdout: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of each class of images of your own that is held out, where no rows are given for it.",
    )
    split_seed: int = Field(0, ge=0, lt=2**64, description="Seed of that share.")
    num_classes: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        json_schema_extra={"null": "the task's own"},
        description="Classes of the head.",
    )
    normalize: Literal["auto", "imagenet", "model", "none"] = Field(
        "auto",
        description="Pixel statistics: imagenet's, the model's own, or none (values from 0 to 1). auto is imagenet, "
        "as in the paper (appendix F), NOAH and FacT; for the embedded backbone its own.",
    )
    augment: Text | None = Field(
        None,
        json_schema_extra={"null": "none, as in the VTAB protocol"},
        description="Changes of the training images in each epoch, by timm's transforms: basic is a random crop, "
        "mirrored or not; a policy of timm's auto_augment, such as rand-m9-mstd0.5-inc1, comes after these.",
    )
    protocol: Literal["test", "select"] = Field(
        "test",
        description="test: train on train800val200, test after the last epoch; select: train on train800, test the "
        "weights of the epoch that is best on val200.",
    )

    selection_rows: int | None = Field(
        None,
        ge=1,
        le=20_000,
        json_schema_extra={"null": "200"},
        description="Rows of val200 of a rendered task. More of them tell closer settings apart, and none is a row to "
        "train or to test on.",
    )

    @model_validator(mode="after")
    def _check_rendered(self) -> Self:
        if self.selection_rows is not None and self.source != "rendered":
            refuse("selection_rows", self.selection_rows, f"leave it out: source {self.source} has the rows it has")
        return self

    @field_validator("augment")
    @classmethod
    def _check_policy(cls, policy: str | None) -> str | None:
        if policy is not None and not POLICY.fullmatch(policy):
            refuse(
                "augment", policy, "type basic, or a policy of timm's, such as rand-m9-mstd0.5-inc1 or augmix-m5-w4"
            )
        return policy

    @field_validator("dataset")
    @classmethod
    def _check_plain(cls, name: str) -> str:
        if name != Path(name).name:
            refuse("dataset", name, "type a task's name, without folders")
        return name


@dataclass(frozen=True)
class VtabRun:
    """All settings of a run; `data.normalize` says what `auto` is for the model."""

    selecting = "select"

    model: VisionModelSection
    data: VisionDataSection
    train: TrainSection
    adapter: Method

    def __post_init__(self) -> None:
        if self.data.normalize == "auto":
            from capaboost_vision.backbone import EMBEDDED  # imports timm, which wrong settings need not wait for

            own = self.model.name.split(".")[0] == EMBEDDED
            data = self.data.replace(normalize="model" if own else "imagenet")
            object.__setattr__(self, "data", data)

    def default_folder(self) -> Path:
        """The default folder of the run."""
        return run_folder("vtab", self.data.dataset, self.model.name, self.adapter, self.train.seed)


def vtab_config_file(folder: Path, dataset: str, source: str | None = None) -> Path:
    """The dataset's own file, or the base file where it has none; for images of one's own the file of these.

    Files give way to others for some models (`read_config`), so that the embedded backbone has one recipe on all data.
    """
    if source == "images":
        return folder / "_own.yaml"
    own = folder / f"{dataset}.yaml"
    return own if own.is_file() and not dataset.startswith("_") else folder / "_base.yaml"


@dataclass(frozen=True)
class GlueRun:
    """All settings of a run."""

    model: TextModelSection
    data: GlueDataSection
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


def glue_config_file(folder: Path, task: str, model: str | None, method: str | None) -> Path:
    """The paper's settings of the model's family and the method's kind.

    Methods without their own settings files use those of their `recipe`.

    Raises:
        UserError: If there is no such task or preset.
    """
    family = family_of(model)
    kind = resolve_config(method).recipe if method else Method.recipe
    return folder / family / f"{find_task(task).name}-{kind}.yaml"


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

    model: TextModelSection
    data: SquadSection
    train: TrainSection
    adapter: Method

    def default_folder(self) -> Path:
        """The default folder of the run."""
        return run_folder("squad", self.data.dataset, self.model.name, self.adapter, self.train.seed)


class LanguageSection(Settings):
    """The texts and what is reported on them.

    Raises:
        UserError: If a setting is unknown, of a wrong type or out of range.
    """

    file: Text = Field(description="Texts to train on: plain text, or JSON lines of texts, prompts or messages.")
    validation: Text | None = Field(
        None, json_schema_extra={"null": "a share of the file"}, description="A file of held-out texts."
    )
    test: Text | None = Field(
        None,
        json_schema_extra={"null": "the held-out texts, or half of them if the other half selects"},
        description="A file of texts to test on.",
    )
    holdout: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the documents that is held out where no file is given for it; of its blocks, if the "
        "file is one document.",
    )
    split_seed: int = Field(0, ge=0, lt=2**63, description="Seed of that share.")
    protocol: Literal["select", "test"] = Field(
        "select",
        description="select: perplexity on the held-out texts selects the epoch, on half of them if there is no file "
        "to test on; test: the last epoch counts.",
    )
    max_length: int = Field(512, ge=2, le=10_000_000, description="Tokens of a block.")
    packing: bool = Field(
        True, description="Fill a block with several documents, which do not see each other; false: one each."
    )


@dataclass(frozen=True)
class LanguageRun:
    """All settings of a run."""

    selecting = "select"
    head = "causal-lm"

    model: TextModelSection
    data: LanguageSection
    train: TrainSection
    adapter: Method

    def default_folder(self) -> Path:
        """The default folder of the run."""
        return run_folder("lm", Path(self.data.file).stem, self.model.name, self.adapter, self.train.seed)


def squad_config_file(folder: Path, dataset: str) -> Path:
    """The largest budget of Table 14 on the data set.

    Raises:
        UserError: If there is no such data set.
    """
    find_source(dataset)
    return folder / f"{dataset.removeprefix('squad_')}_padapter_64.yaml"
