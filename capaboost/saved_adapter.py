"""An adapted model from a saved adapter alone, on a base with random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import timm
from torch import nn
from transformers import AutoConfig

import capaboost_vision.backbone  # noqa: F401  registers the embedded backbone
from capaboost_core import UserError, load_adapter
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from capaboost_core.adapter_files.disk import read_record, read_shapes
from capaboost_core.plan import in_prefix
from capaboost_text.encoders import HEADS

Shapes = dict[str, tuple[int, ...]]


def load_saved(folder: Path) -> nn.Module:
    """Load an adapter on a base that timm or transformers builds without pretrained weights.

    Increments, masks and counts are those of the adapter; the model's output is not.

    Raises:
        UserError: If the folder holds no sound adapter, or its base cannot be built here.
    """
    record, shapes = read_record(folder), read_shapes(folder)
    name = record.base_model
    head = {key: shape for key, shape in shapes.items() if any(in_prefix(key, prefix) for prefix in record.plan.head)}
    labels = min((shape[0] for shape in head.values() if len(shape) == 2), default=0)
    base = _timm_model(name, labels) if timm.is_model(name) else _encoder(name, head, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DifferentBaseWarning)  # the weights are random on purpose
        return load_adapter(base, folder)


def _timm_model(name: str, labels: int) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=labels)
    except RuntimeError as error:
        raise UserError(f"timm cannot build {name}: {error}; save the adapter of a model that it knows") from error


def _encoder(name: str, head: Shapes, labels: int) -> nn.Module:
    """The first kind of encoder whose head has the saved head's names and shapes."""
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, num_labels=labels)
    except Exception as error:  # transformers fails in many ways on a damaged file
        raise UserError(
            f"neither timm nor a local folder has the base model {name}; run where its config.json is"
        ) from error
    for kind in HEADS.values():
        try:
            model = kind.from_config(config)
        except ValueError:  # this architecture has no such head
            continue
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        if head.items() <= shapes.items():
            return model
    raise UserError(f"no encoder {name} has the saved head {', '.join(head)}; its base model has changed")
