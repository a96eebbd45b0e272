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
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of a checkout that is not installed

from capaboost.command_line import exit_code  # noqa: E402

ARCHITECTURE = "capaboost_vit_micro_patch8_64"
CHECKPOINT, WEIGHTS, METRICS = "checkpoint.pt", f"{ARCHITECTURE}.safetensors", "metrics.jsonl"
FIXED = ("batch_size", "lr", "weight_decay", "patch_drop", "mixup", "seed")  # once a run has begun


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="folder of train-*.parquet, val.parquet")
    add("--output-dir", type=Path, default=Path("runs/backbone"))
    add("--epochs", type=int, default=16)
    add("--batch-size", type=int, default=256)
    add("--lr", type=float, default=2e-3, help="AdamW's; Muon's is ten times as large")
    add("--weight-decay", type=float, default=0.05)
    add("--patch-drop", type=float, default=0.5, help="share of tokens dropped in training")
    add("--full-epochs", type=int, default=1, help="last epochs, trained on all tokens")
    add("--mixup", type=float, default=0.2, help="alpha of the Beta distribution; 0 = off")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def pretrain(options: argparse.Namespace) -> None:
    """Train what is left of the run; after each epoch its files are written together.

    Raises:
        UserError: If a flag, an image file or the checkpoint does not fit.
    """
    import timm  # all here, so that --help is quick
    import torch
    from backbone_images import load_split
    from backbone_training import Pretraining, top1

    out, device = options.output_dir, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timm.layers.set_fused_attn(device.type == "cuda")  # the fused CPU kernel is slow backward
    training, validation = image_files(options.data_dir)
    images, labels = load_split(training, out / "train.npz")
    tested = load_split([validation], out / "val.npz")
    check(options, len(labels))
    run = Pretraining(options, ARCHITECTURE, int(labels.max()) + 1, len(labels) // options.batch_size, device)
    records = resume(run, options, out / CHECKPOINT) if (out / CHECKPOINT).exists() else []
    while run.epoch < options.epochs:
        begin = time.perf_counter()
        loss = run.train_epoch(images, labels)
        accuracy = top1(run.averaged, *tested, device)
        run.seconds += time.perf_counter() - begin
        records.append({"epoch": run.epoch, "loss": loss, "val_top1": accuracy, "seconds": run.seconds})
        save(run, records, out)
        print(json.dumps(records[-1]), flush=True)


def image_files(folder: Path) -> tuple[list[Path], Path]:
    """Those to train on and the one to validate on.

    Raises:
        UserError: If they are not there.
    """
    from capaboost_core.errors import UserError

    training, validation = sorted(folder.glob("train-*.parquet")), folder / "val.parquet"
    if not (training and validation.is_file()):
        raise UserError(f"{folder} holds no train-*.parquet and val.parquet; give the folder of the Parquet files")
    return training, validation


def check(options: argparse.Namespace, images: int) -> None:
    """Refuse sizes with which nothing would be trained.

    Raises:
        UserError: If there are such.
    """
    from capaboost_core.errors import UserError

    if not 1 <= options.batch_size <= images:
        raise UserError(f"--batch-size is {options.batch_size}; type 1 to {images}, the number of images")
    if options.epochs < 1:
        raise UserError(f"--epochs is {options.epochs}; type 1 or more")
    if not 0 <= options.patch_drop < 1:
        raise UserError(f"--patch-drop is {options.patch_drop:g}; type a share in [0, 1)")


def resume(run: Any, options: argparse.Namespace, path: Path) -> list[dict[str, float]]:
    """Put the run where the checkpoint stands, and give the records of its epochs.

    Raises:
        UserError: If the run began with other flags.
    """
    import torch

    from capaboost_core.errors import UserError

    state = torch.load(path, map_location=run.device, weights_only=True)
    for name, value in state["settings"].items():
        if getattr(options, name) != value:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"the run in {path.parent} began with {flag} {value}; type that, or another --output-dir")
    run.load_state_dict(state["run"])
    return state["records"]


def save(run: Any, records: list[dict[str, float]], folder: Path) -> None:
    """The checkpoint, the averaged weights and a line for each epoch."""
    import torch
    from safetensors.torch import save as to_bytes

    from capaboost_core.files import write_together

    settings = {name: getattr(run.options, name) for name in FIXED}
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_together(
        {
            folder / WEIGHTS: lambda file: file.write(to_bytes(run.half())),
            folder / METRICS: lambda file: file.write(lines.encode()),
            folder / CHECKPOINT: lambda file: torch.save(
                {"run": run.state_dict(), "records": records, "settings": settings}, file
            ),
        }
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_code(lambda: pretrain(options), "the same command goes on from its last epoch")


if __name__ == "__main__":
    sys.exit(main())
