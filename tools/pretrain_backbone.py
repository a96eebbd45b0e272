"""Pretrain the embedded backbone on Tiny ImageNet, resumable, on a CPU or a GPU.

    python tools/pretrain_backbone.py --data-dir DATA/upstream --output-dir runs/backbone

DATA/upstream holds Parquet files with the columns `image` (encoded bytes) and `label`. Steps are
cheaper by dropping half of the patch tokens in training (PatchDropout, Liu et al., 2023), and fewer by
Muon (Jordan et al., 2024) on the matrices of the blocks, with AdamW on the rest. A run that was stopped
goes on from its last epoch when it is started again. The weights kept are
an exponential moving average, in half precision.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import capaboost_vision  # noqa: F401  registers the architecture with timm

ARCHITECTURE = "capaboost_vit_micro_patch8_64"
MEAN, STD = 127.5, 127.5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of train-*.parquet, val.parquet")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/backbone"))
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3, help="AdamW's; Muon's is ten times as large")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--patch-drop", type=float, default=0.5, help="share of tokens dropped in training")
    parser.add_argument("--full-epochs", type=int, default=1, help="last epochs, trained on all tokens")
    parser.add_argument("--mixup", type=float, default=0.2, help="alpha of the Beta distribution; 0 = off")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_split(paths: list[Path], cache: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, 64, 64) uint8 images and (N,) labels, decoded once and kept in `cache`."""
    if not cache.exists():
        images, labels = [], []
        for path in paths:
            rows = parquet.read_table(path).to_pydict()
            labels += rows["label"]
            for row in tqdm(rows["image"], desc=f"decode {path.name}"):
                data = row["bytes"] if isinstance(row, dict) else row
                images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, images=np.stack(images).transpose(0, 3, 1, 2), labels=np.array(labels))
    data = np.load(cache)
    return torch.from_numpy(data["images"]), torch.from_numpy(data["labels"]).long()


def augment(images: torch.Tensor, pad: int = 6) -> torch.Tensor:
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


def mix(images: torch.Tensor, targets: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al., 2018) of each image with the next one of the batch."""
    share = float(np.random.beta(alpha, alpha)) if alpha else 1.0
    return (
        share * images + (1 - share) * images.roll(1, 0),
        share * targets + (1 - share) * targets.roll(1, 0),
    )


def make_optimizers(model: torch.nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the blocks, AdamW on the rest (no decay on vectors)."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98)),
        torch.optim.Muon(matrices, lr=10 * lr, weight_decay=weight_decay, momentum=0.95),
    ]


def learning_rate_factor(step: int, total: int, warm_up: int, decay: float = 0.4) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay` share of the steps, so that
    a run can be shortened or lengthened while it is in its constant part (Hu et al., 2024).
    """
    return min(1.0, (step + 1) / warm_up, (total - step) / (decay * total))


@torch.inference_mode()
def top1(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, device: torch.device) -> float:
    model.eval()
    hits = 0
    for start in range(0, len(labels), 500):
        batch = (images[start : start + 500].to(device).float() - MEAN) / STD
        with torch.autocast(device.type, torch.bfloat16):
            hits += (model(batch).argmax(-1).cpu() == labels[start : start + 500]).sum().item()
    model.train()
    return hits / len(labels)


def write_atomically(path: Path, save, payload) -> None:
    partial = path.with_suffix(".partial")
    save(payload, partial)
    os.replace(partial, path)


class Pretraining:
    """Model, averaged weights, optimizers and where they are in the run."""

    def __init__(self, arguments: argparse.Namespace, classes: int, steps_per_epoch: int, device: torch.device):
        self.arguments, self.device, self.classes = arguments, device, classes
        model = timm.create_model(ARCHITECTURE, num_classes=classes, patch_drop_rate=arguments.patch_drop)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
        self.optimizers = make_optimizers(self.model, arguments.lr, arguments.weight_decay)
        self.base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.steps_per_epoch = steps_per_epoch
        self.epoch, self.seconds = 0, 0.0

    def train_epoch(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One pass in an order that follows from seed and epoch; returns the last loss."""
        if self.epoch >= self.arguments.epochs - self.arguments.full_epochs:
            self.model.patch_drop = torch.nn.Identity()
        torch.manual_seed(self.arguments.seed * 1000 + self.epoch)
        np.random.seed(self.arguments.seed * 1000 + self.epoch)
        order, size = torch.randperm(len(labels)), self.arguments.batch_size
        description = f"epoch {self.epoch + 1}/{self.arguments.epochs}"
        bar = tqdm(range(self.steps_per_epoch), desc=description, mininterval=5)
        for step in bar:
            rows = order[step * size : (step + 1) * size]
            self.set_learning_rates(self.epoch * self.steps_per_epoch + step)
            loss = self.train_step(images[rows].to(self.device), labels[rows].to(self.device))
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
        return loss.item()

    def set_learning_rates(self, step: int) -> None:
        factor = learning_rate_factor(step, self.steps_per_epoch * self.arguments.epochs, self.steps_per_epoch)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def train_step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        images = (augment(images).float() - MEAN) / STD
        images, targets = mix(images, F.one_hot(labels, self.classes).float(), self.arguments.mixup)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)
        return loss

    def save(self) -> None:
        """A checkpoint to go on from, and the averaged weights in half precision."""
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": self.epoch,
            "seconds": self.seconds,
        }
        weights = {k: v.half().contiguous().cpu() for k, v in self.averaged.module.state_dict().items()}
        write_atomically(self.arguments.output_dir / "checkpoint.pt", torch.save, state)
        write_atomically(self.arguments.output_dir / f"{ARCHITECTURE}.safetensors", save_file, weights)

    def load(self) -> None:
        state = torch.load(self.arguments.output_dir / "checkpoint.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.epoch, self.seconds = state["epoch"], state["seconds"]


def main() -> None:
    arguments = parse_arguments()
    out = arguments.output_dir
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timm.layers.set_fused_attn(device.type == "cuda")  # the fused CPU kernel is slow backward
    torch.manual_seed(arguments.seed)
    images, labels = load_split(sorted(arguments.data_dir.glob("train-*.parquet")), out / "train.npz")
    validation = load_split([arguments.data_dir / "val.parquet"], out / "val.npz")
    run = Pretraining(arguments, int(labels.max()) + 1, len(labels) // arguments.batch_size, device)
    if (out / "checkpoint.pt").exists():
        run.load()
    while run.epoch < arguments.epochs:
        begin = time.perf_counter()
        loss = run.train_epoch(images, labels)
        accuracy = top1(run.averaged, *validation, device)
        run.epoch, run.seconds = run.epoch + 1, run.seconds + time.perf_counter() - begin
        record = {"epoch": run.epoch, "loss": loss, "val_top1": accuracy, "seconds": run.seconds}
        with open(out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        tqdm.write(json.dumps(record))
        run.save()


if __name__ == "__main__":
    main()
