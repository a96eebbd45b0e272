"""The run from its first start to its last epoch, and its files."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes

from capaboost.training.checkpoint import check_fingerprint
from capaboost_core.errors import UserError
from capaboost_core.files import write_together
from capaboost_core.task import content_hash
from pretraining.images import image_files, load_split
from pretraining.recipe import Recipe
from pretraining.run import Pretraining, top1

ARCHITECTURE = "capaboost_vit_micro_patch8_64"
CHECKPOINT, WEIGHTS, METRICS = "checkpoint.pt", f"{ARCHITECTURE}.safetensors", "metrics.jsonl"
LATER = {"epochs", "full_epochs"}  # may change while the rate is constant


def pretrain(recipe: Recipe, data_dir: Path, out: Path) -> None:
    """Train what is left of the run; after each epoch its files are written together.

    Raises:
        UserError: If the batch size, an image file or the checkpoint does not fit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, validation = image_files(data_dir)
    images, labels = load_split(training, out / "train.npz")
    tested = load_split([validation], out / "val.npz")
    if recipe.batch_size > len(labels):
        raise UserError(f"batch_size is {recipe.batch_size}; type at most {len(labels)}, the number of images")
    run = Pretraining(recipe, ARCHITECTURE, int(labels.max()) + 1, len(labels) // recipe.batch_size, device)
    fingerprint = recipe.model_dump(exclude=LATER) | {"data": content_hash([images.numpy(), labels.numpy()])}
    records = resume(run, fingerprint, out / CHECKPOINT) if (out / CHECKPOINT).exists() else []
    while run.epoch < recipe.epochs:
        begin = time.perf_counter()
        loss = run.train_epoch(images, labels)
        accuracy = top1(run.averaged, *tested, device)
        run.seconds += time.perf_counter() - begin
        records.append({"epoch": run.epoch, "loss": loss, "val_top1": accuracy, "seconds": run.seconds})
        save(run, fingerprint, records, out)
        print(json.dumps(records[-1]), flush=True)


def resume(run: Pretraining, fingerprint: dict[str, Any], path: Path) -> list[dict[str, float]]:
    """Put the run where the checkpoint stands, and give the records of its epochs.

    Raises:
        UserError: If the checkpoint cannot be read, or the run began with other flags or images.
    """
    try:
        state = torch.load(path, map_location=run.device, weights_only=True)
        there = state["fingerprint"]
    except (OSError, RuntimeError, TypeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is no checkpoint of this command; choose another --output-dir") from error
    check_fingerprint(path.parent, there, fingerprint)
    run.load_state_dict(state["run"])
    return state["records"]


def save(run: Pretraining, fingerprint: dict[str, Any], records: list[dict[str, float]], folder: Path) -> None:
    """The averaged weights, a line for each epoch, and the checkpoint."""
    state = {"run": run.state_dict(), "records": records, "fingerprint": fingerprint}
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_together(
        {
            folder / WEIGHTS: lambda file: file.write(to_bytes(run.half())),
            folder / METRICS: lambda file: file.write(lines.encode()),
            folder / CHECKPOINT: lambda file: torch.save(state, file),
        }
    )
