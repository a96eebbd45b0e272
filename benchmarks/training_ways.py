"""The ways to train that a whole run is compared with, each measured in images per second."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import capaboost_vision  # noqa: F401  registers the argument `capaboost`
from capaboost.training.loop import fit
from capaboost.training.optimize import make_accelerator
from capaboost.training.settings import TrainSection
from capaboost_core import trainable_parameters
from capaboost_vision.vtab.task import ImageTask, Normalize


@dataclass(frozen=True)
class DigitsRun:
    """What all ways of training share: the model, the digits at its input size, the settings."""

    model_name: str
    device: torch.device
    images: Dataset
    decoded: tuple[Tensor, Tensor]
    train: TrainSection

    def model(self) -> nn.Module:
        return timm.create_model(self.model_name, num_classes=10, capaboost="capaboost-lora").to(self.device)

    @property
    def examples(self) -> int:
        """Images of the whole run."""
        return self.train.epochs * len(self.decoded[1])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class WholeRun:
    """Measures the package's own loop; `training_part` collects the rates without checkpoints."""

    def __init__(self, run: DigitsRun):
        self.run, self.training_part = run, []

    def __call__(self) -> float:
        """Images a second, checkpoints and all."""
        run = self.run
        with tempfile.TemporaryDirectory() as folder:
            accelerator = make_accelerator(run.train, Path(folder))
            model = run.model()
            normalize = Normalize("model", model, accelerator.device)
            task = ImageTask(accelerator, normalize, run.decoded, None, run.images, run.train.batch_size, 0)
            fitted = fit(accelerator, model, task, run.train, Path(folder), {})
        self.training_part.append(fitted.examples_per_second)
        return run.examples / fitted.wall_seconds


class PlainLoop:
    """A model, its optimizer, and a step without the package's loop."""

    def __init__(self, run: DigitsRun):
        self.run, self.model = run, run.model().train()
        self.normalize = Normalize("model", self.model, run.device)
        parameters = list(trainable_parameters(self.model).values())
        decay = run.train.weight_decay
        self.optimizer = torch.optim.AdamW(parameters, run.train.lr, weight_decay=decay, fused=True)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step on normalized images; returns the loss."""
        half = self.run.train.mixed_precision == "bf16"
        with torch.autocast(self.run.device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def rate(self, train: Callable[[], None]) -> float:
        """Images a second of one run of `train`."""
        self.run.wait()
        begun = time.perf_counter()
        train()
        self.run.wait()
        return self.run.examples / (time.perf_counter() - begun)


def bare_step(run: DigitsRun) -> Callable[[], float]:
    """Images a second of steps on a batch that is ready; as in a run, an epoch's last one may be shorter."""
    loop, size = PlainLoop(run), run.train.batch_size
    images, labels = (tensor[:size].to(run.device) for tensor in run.decoded)
    images = loop.normalize(images)
    sizes = [len(part) for part in run.decoded[1].split(size)] * run.train.epochs

    def train() -> None:
        for count in sizes:
            loop.step(images[:count], labels[:count])

    return lambda: loop.rate(train)


def ordinary_way(run: DigitsRun, workers: int) -> Callable[[], float]:
    """Images per second of the usual training loop."""
    loop, pinned = PlainLoop(run), run.device.type == "cuda"
    loader = DataLoader(run.images, run.train.batch_size, shuffle=True, num_workers=workers, pin_memory=pinned)

    def train() -> None:
        for epoch in range(run.train.epochs):
            for images, labels in (bar := tqdm(loader, f"epoch {epoch + 1}", leave=False)):
                images, labels = (tensor.to(run.device, non_blocking=True) for tensor in (images, labels))
                loss = loop.step(loop.normalize(images), labels)
                bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)

    return lambda: loop.rate(train)
