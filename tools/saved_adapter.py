"""An adapted model from a saved adapter alone, on a base with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import timm
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig

import capaboost_vision.backbone  # noqa: F401  registers the embedded backbone
from capaboost_core import UserError, load_adapter
from capaboost_core.plan import in_prefix
from capaboost_core.state import CONFIG, WEIGHTS
from capaboost_text.encoders import HEADS

Shapes = dict[str, tuple[int, ...]]


def load_saved(folder: Path) -> nn.Module:
    """Load an adapter on a base that timm or transformers builds without pretrained weights.

    Increments, masks and counts are those of the adapter; the model's output is not.

    Raises:
        UserError: If the folder holds no sound adapter, or its base cannot be built here.
    """
    name, head = _read(folder)
    labels = min((shape[0] for shape in head.values() if len(shape) == 2), default=0)
    base = timm.create_model(name, num_classes=labels) if timm.is_model(name) else _encoder(name, head, labels)
    return load_adapter(base, folder)


def _read(folder: Path) -> tuple[str, Shapes]:
    """The base model's name, and the shapes of the saved head."""
    try:
        record = json.loads((folder / CONFIG).read_text())
        prefixes, name = record["plan"]["head"], str(record["base_model"])
        with safe_open(folder / WEIGHTS, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no sound {CONFIG} and {WEIGHTS}; give a saved adapter's folder") from error
    return name, {key: shape for key, shape in shapes.items() if any(in_prefix(key, prefix) for prefix in prefixes)}


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
