"""What is pretrained: the model with its averaged weights, optimizers, and place in the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import capaboost_vision  # noqa: F401  registers the architecture with timm
from capaboost_core.injection import weight_decay_groups
from pretraining.images import augment, mix, scaled
from pretraining.recipe import Recipe


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
        for block in model.blocks:
            block.attn.fused_attn = device.type == "cuda"  # the fused CPU kernel is slow backward
        self.model = model.to(device, memory_format=torch.channels_last)
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
