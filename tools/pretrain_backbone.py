"""Pretrain the embedded backbone on Tiny ImageNet, resumable, on a CPU or a GPU.

    python tools/pretrain_backbone.py --data-dir DATA/upstream --output-dir runs/backbone

DATA/upstream holds Parquet files with the columns `image` (encoded bytes) and `label`. Steps are
cheaper by dropping half of the patch tokens in training (PatchDropout, Liu et al., 2023), and fewer by
Muon (Jordan et al., 2024) on the matrices of the blocks, with AdamW on the rest. A run that was stopped
goes on from its last epoch when it is started again, bit for bit. The weights kept are
an exponential moving average, in half precision.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of a checkout that is not installed

import torch  # noqa: E402
from pretraining.images import image_files, load_split  # noqa: E402
from pretraining.recipe import Recipe  # noqa: E402
from pretraining.run import Pretraining, top1  # noqa: E402
from safetensors.torch import save as to_bytes  # noqa: E402

from capaboost.command_line import exit_code  # noqa: E402
from capaboost_core.errors import UserError  # noqa: E402
from capaboost_core.files import write_together  # noqa: E402
from capaboost_core.training.checkpoint import check_fingerprint  # noqa: E402
from capaboost_core.training.task import content_hash  # noqa: E402

ARCHITECTURE = "capaboost_vit_micro_patch8_64"
CHECKPOINT, WEIGHTS, METRICS = "checkpoint.pt", f"{ARCHITECTURE}.safetensors", "metrics.jsonl"
LATER = {"epochs", "full_epochs"}  # may change while the rate is constant


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of train-*.parquet, val.parquet")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/backbone"), help="default: runs/backbone")
    for name, field in Recipe.model_fields.items():
        flag, kind, default = f"--{name.replace('_', '-')}", type(field.default), field.default
        parser.add_argument(flag, type=kind, default=default, help=f"{field.description} (default: {default})")
    return parser.parse_args(arguments)


def pretrain(options: argparse.Namespace) -> None:
    """Train what is left of the run; after each epoch its files are written together.

    Raises:
        UserError: If a flag, an image file or the checkpoint does not fit.
    """
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.model_fields})
    out, device = options.output_dir, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, validation = image_files(options.data_dir)
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


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_code(lambda: pretrain(options), "the same command goes on from its last epoch")


if __name__ == "__main__":
    sys.exit(main())
