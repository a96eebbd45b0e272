"""Adapters of a tiny model, and what can be done to their files."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from capaboost_core import save_adapter
from tests.core.toy_model import X, adapted, randomise

CONFIG, WEIGHTS = "capaboost_config.json", "adapter.safetensors"


def saved(folder, model=None):
    """Save a randomised adapter; returns its model."""
    model = model or randomise(adapted())
    save_adapter(model, folder)
    return model


def edit_record(folder, change, sealed=False):
    """Change the record; without `sealed` as an older version wrote it, that is without checksums."""
    path = folder / CONFIG
    record = json.loads(path.read_text())
    change(record)
    if not sealed:
        for key in ("checksum", "weights_sha256"):
            record.pop(key, None)
    path.write_text(json.dumps(record))


def edit_tensors(folder, change):
    """Change the stored tensors, and drop the checksums."""
    path = folder / WEIGHTS
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    edit_record(folder, lambda record: None)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def state_of(model):
    """All that loading could change: modules, attributes, hooks, values, what is trainable, random numbers."""
    return (
        [(path, id(module), sorted(vars(module))) for path, module in model.named_modules()],
        [len(module._load_state_dict_pre_hooks) for module in model.modules()],
        [(name, id(p), p.requires_grad, p.detach().clone().tolist()) for name, p in model.named_parameters()],
        [id(module.forward.__func__) for module in model.modules()],
        model(X).tolist(),
        torch.get_rng_state().tolist(),
    )
