"""Pretrain the embedded backbone on Tiny ImageNet, resumable, on a CPU or a GPU.

    python tools/pretrain_backbone.py --data-dir DATA/upstream --output-dir runs/backbone

DATA/upstream holds Parquet files with the columns `image` (encoded bytes) and `label`. Steps are
cheaper by dropping half of the patch tokens in training (PatchDropout, Liu et al., 2023), and fewer by
Muon (Jordan et al., 2024) on the matrices of the blocks, with AdamW on the rest. A run that was stopped
goes on from its last epoch when it is started again, bit for bit. The weights that it writes are
an exponential moving average, in half precision.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of a checkout that is not installed

# ruff: noqa: E402
from capaboost.training.processes import wait_policy

os.environ.update(wait_policy())  # torch's threads read it on its import, which follows
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from safetensors.torch import save as to_bytes
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import capaboost_vision  # noqa: F401  registers the architecture with timm
from capaboost.command_line import exit_code
from capaboost.training.checkpoint import check_fingerprint
from capaboost_core.errors import UserError
from capaboost_core.files import explained, write_atomically, write_together
from capaboost_core.injection import weight_decay_groups
from capaboost_core.settings import Settings
from capaboost_core.task import content_hash

ARCHITECTURE = "capaboost_vit_micro_patch8_64"
CHECKPOINT, WEIGHTS, METRICS = "checkpoint.pt", f"{ARCHITECTURE}.safetensors", "metrics.jsonl"
LATER = {"epochs", "full_epochs"}  # may change while the rate is constant
MEAN, STD = 127.5, 127.5


class Recipe(Settings):
    """The settings of a run; each is a flag of the command.

    Raises:
        UserError: If one is out of range.
    """

    epochs: int = Field(16, ge=1, description="passes over the images")
    batch_size: int = Field(256, ge=1, description="images of a step")
    lr: float = Field(2e-3, gt=0, description="AdamW's; Muon's is ten times as large")
    weight_decay: float = Field(0.05, ge=0, description="of both optimizers, vectors left out")
    patch_drop: float = Field(0.5, ge=0, lt=1, description="share of tokens dropped in training")
    full_epochs: int = Field(1, ge=0, description="last epochs, trained on all tokens")
    mixup: float = Field(0.2, ge=0, description="alpha of the Beta distribution; 0 = off")
    seed: int = Field(0, ge=0, lt=4_000_000, description="of weights, order and augmentation")


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


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    model.eval()
    hits = 0
    for start in range(0, len(labels), 500):
        with torch.autocast(device.type, torch.bfloat16):
            found = model(scaled(images[start : start + 500].to(device))).argmax(-1).cpu()
        hits += (found == labels[start : start + 500]).sum().item()
    model.train()
    return hits / len(labels)


def make_optimizers(model: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the blocks, AdamW on the rest (no decay on vectors)."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    return [
        torch.optim.AdamW(weight_decay_groups(others, weight_decay), lr=lr, betas=(0.9, 0.98)),
        torch.optim.Muon(matrices, lr=10 * lr, weight_decay=weight_decay, momentum=0.95),
    ]


def learning_rate_factor(step: int, total: int, warm_up: int, decay: float = 0.4) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay` share of the steps, so that
    a run can be shortened or lengthened while it is in its constant part (Hu et al., 2024).
    """
    return min(1.0, (step + 1) / warm_up, (total - step) / (decay * total))


class Pretraining:
    """A run between two of its epochs.

    Args:
        recipe: Its settings.
        architecture: A name of timm.
        classes: Of the head.
        steps: Optimizer steps of an epoch.
        device: Where the model is.
    """

    def __init__(self, recipe: Recipe, architecture: str, classes: int, steps: int, device: torch.device):
        self.recipe, self.device, self.classes, self.steps = recipe, device, classes, steps
        torch.manual_seed(recipe.seed)
        model = timm.create_model(architecture, num_classes=classes, patch_drop_rate=recipe.patch_drop)
        assert isinstance(model, VisionTransformer)
        for block in model.blocks:
            cast(Any, block).attn.fused_attn = device.type == "cuda"  # the fused CPU kernel is slow backward
        self.model = cast(Any, model).to(device, memory_format=torch.channels_last)
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
        self.optimizers = make_optimizers(self.model, recipe.lr, recipe.weight_decay)
        self.base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.epoch, self.seconds = 0, 0.0

    def train_epoch(self, images: Tensor, labels: Tensor) -> float:
        """One pass in an order that follows from seed and epoch; returns the last loss."""
        if self.epoch >= self.recipe.epochs - self.recipe.full_epochs:
            self.model.patch_drop = nn.Identity()
        torch.manual_seed(self.recipe.seed * 1000 + self.epoch)
        np.random.seed(self.recipe.seed * 1000 + self.epoch)
        order, size = torch.randperm(len(labels)), self.recipe.batch_size
        bar = tqdm(range(self.steps), f"epoch {self.epoch + 1}/{self.recipe.epochs}", mininterval=5)
        for step in bar:
            rows = order[step * size : (step + 1) * size]
            self.set_learning_rates(self.epoch * self.steps + step)
            loss = self.train_step(images[rows].to(self.device), labels[rows].to(self.device))
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
        self.epoch += 1
        return loss.item()

    def set_learning_rates(self, step: int) -> None:
        factor = learning_rate_factor(step, self.steps * self.recipe.epochs, self.steps)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        targets = F.one_hot(labels, self.classes).float()
        images, targets = mix(scaled(augment(images)), targets, self.recipe.mixup)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)
        return loss

    def half(self) -> dict[str, Tensor]:
        """The averaged weights in half precision, on the CPU."""
        return {k: v.half().contiguous().cpu() for k, v in self.averaged.module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": self.epoch,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.epoch, self.seconds = state["epoch"], state["seconds"]


def image_files(folder: Path) -> tuple[list[Path], Path]:
    """Those to train on and the one to validate on.

    Raises:
        UserError: If they are not there.
    """
    training, validation = sorted(folder.glob("train-*.parquet")), folder / "val.parquet"
    if not (training and validation.is_file()):
        raise UserError(f"{folder} holds no train-*.parquet and val.parquet; give the folder of the Parquet files")
    return training, validation


def load_split(paths: Sequence[Path], cache: Path) -> tuple[Tensor, Tensor]:
    """(N, 3, height, width) uint8 images and (N,) labels, decoded once and kept in `cache` with the files' sizes.

    Raises:
        UserError: If a file is no Parquet file of images and labels, or the images are of several sizes.
    """
    sizes = np.array([path.stat().st_size for path in paths])
    data = _cached(cache, sizes)
    if data is None:
        images, labels = zip(*(row for path in paths for row in _decoded(path)), strict=True)
        if len({image.shape for image in images}) != 1:
            raise UserError(f"{paths[0].parent} holds images of several sizes; give images of one size")
        data = {"images": np.stack(images).transpose(0, 3, 1, 2), "labels": np.array(labels), "sizes": sizes}
        arrays: dict[str, Any] = data
        write_atomically(cache, lambda file: np.savez(file, **arrays))
    return torch.from_numpy(data["images"]), torch.from_numpy(data["labels"]).long()


def _cached(path: Path, sizes: np.ndarray) -> dict[str, np.ndarray] | None:
    """The arrays of a cache; nothing where there is none, or one of other files, or one that cannot be read."""
    try:
        with np.load(path) as file:
            data = {name: file[name] for name in ("images", "labels", "sizes")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return data if np.array_equal(data["sizes"], sizes) else None


def _decoded(path: Path) -> Iterator[tuple[np.ndarray, int]]:
    import pyarrow  # of an extra: exit_code names it where it is not installed
    import pyarrow.parquet as parquet

    with explained("read", path):
        try:
            table = parquet.read_table(path, columns=["image", "label"])
        except pyarrow.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: {reason}; give a Parquet file with the columns image and label") from error
    rows = zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
    for image, label in tqdm(rows, f"decode {path.name}", table.num_rows, disable=None):
        data = image["bytes"] if isinstance(image, dict) else image  # as Hugging Face's datasets write them
        with explained("read", path):
            yield np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), label


def scaled(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return (images.float() - MEAN) / STD


def augment(images: Tensor, pad: int = 6) -> Tensor:
    """Random horizontal flip, then a random crop of the reflection-padded batch, one offset an image."""
    batch, _, height, width = images.shape
    flip = torch.rand(batch, device=images.device) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    padded = F.pad(images, (pad,) * 4, mode="reflect")
    offsets = torch.randint(0, 2 * pad + 1, (2, batch, 1), device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mix(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., 2018) of each image with the one before it in the batch."""
    share = float(np.random.beta(alpha, alpha)) if alpha else 1.0
    return share * images + (1 - share) * images.roll(1, 0), share * targets + (1 - share) * targets.roll(1, 0)


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


def start(options: argparse.Namespace) -> None:
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.model_fields})
    pretrain(recipe, options.data_dir, options.output_dir)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_code(lambda: start(options), "the same command goes on from its last epoch")


if __name__ == "__main__":
    sys.exit(main())
