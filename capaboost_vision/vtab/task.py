"""Image classification for the training loop: images that live on the device, loss, accuracy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data.config import resolve_model_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from capaboost_core.task import content_hash, write_confusion
from capaboost_vision.vtab.sources import ResizedImages

ACCURACY, VAL_ACCURACY = "accuracy", "val200_accuracy"
HELD_OUT_ACCURACY = "held_out_accuracy"  # of images of one's own, whose test rows are looked at after each epoch


class Normalize:
    """uint8 pixels to floats, on their device: (x / 255 - mean) / std for each channel.

    Args:
        kind: `model` takes the statistics of the model's pretrained cfg, `imagenet` those of ImageNet,
            `none` leaves values from 0 to 1.
    """

    def __init__(self, kind: str, model: nn.Module, device: torch.device):
        own = resolve_model_data_config(model)
        mean, std = {
            "model": (own["mean"], own["std"]),
            "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
            "none": ((0.0,) * 3, (1.0,) * 3),
        }[kind]
        self.mean, self.std = mean, std
        self.shift = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
        self.scale = 1 / (torch.tensor(std, device=device).view(1, 3, 1, 1) * 255)

    def __call__(self, images: Tensor) -> Tensor:
        """images (batch, 3, height, width) of uint8 -> float32."""
        return (images.float() - self.shift) * self.scale

    def to_dict(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "std": list(self.std)}


class ImageTask:
    """A `capaboost_core.task.Task`.

    Nothing is augmented, so the training images are decoded once and stay on the device as uint8;
    `augment.AugmentedImageTask` changes them anew in every epoch.

    Args:
        train: uint8 images (N, 3, H, W) and their labels.
        val: The same of val200, if an epoch is selected on it.
        test: Read once, in a stream.
    """

    unit = "images"

    def __init__(
        self,
        accelerator: Accelerator,
        normalize: Normalize,
        train: tuple[Tensor, Tensor],
        val: tuple[Tensor, Tensor] | None,
        test: ResizedImages,
        batch_size: int,
        seed: int,
    ):
        self.accelerator, self.normalize, self.device = accelerator, normalize, accelerator.device
        self.images, self.labels = (tensor.to(self.device) for tensor in train)
        self.val = [tensor.to(self.device) for tensor in val] if val else None
        self.test_set, self.batch_size, self.seed = test, batch_size, seed
        self.examples = len(self.labels)
        self.large = 256 if self.device.type != "cpu" else 64
        self.val_metric = VAL_ACCURACY
        self.classes: tuple[str, ...] = ()
        self.confusion: Tensor | None = None

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """Indices in the order of (seed, epoch), on the device, so that an epoch copies them once."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.examples)
        return torch.from_numpy(order).to(self.device).split(self.batch_size)

    def fingerprint(self) -> str:
        """Of the images and labels to train and select on."""
        tensors = (self.images, self.labels, *(self.val or ()))
        return content_hash(tensor.cpu().numpy() for tensor in tensors)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        images, labels = self.rows(batch)
        return F.cross_entropy(model(self.normalize(images)), labels)

    def rows(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The images (uint8) and labels of a batch, on the device."""
        return self.images[batch], self.labels[batch]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy in percent and mean loss on val200, if there is one; the test set stays closed."""
        if self.val is None:
            return {}
        images, labels = (tensor[self._share()].split(self.large) for tensor in self.val)
        confusion, loss = self._score(model, zip(images, labels, strict=True))
        return {self.val_metric: _accuracy(confusion), self.val_metric.replace("accuracy", "loss"): loss}

    def test(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on the test set in percent; `confusion` then counts (true class, predicted class)."""
        part = Subset(self.test_set, range(len(self.test_set))[self._share()])
        on_gpu = self.device.type != "cpu"
        workers = min(8, os.cpu_count() or 1) if on_gpu and len(part) > 4 * self.large else 0
        loader = DataLoader(part, self.large, num_workers=workers, pin_memory=on_gpu)
        hidden = None if self.accelerator.is_main_process else True  # None: shown on a terminal only
        bar = tqdm(loader, "test", unit=" batches", leave=False, disable=hidden)
        self.confusion, _ = self._score(model, bar)
        return {ACCURACY: _accuracy(self.confusion)}

    def write_report(self, folder: Path) -> None:
        """Write `confusion.csv` of the test rows, once they are tested."""
        assert self.confusion is not None
        write_confusion(folder, self.classes, self.confusion.tolist())

    def _share(self) -> slice:
        """This process's rows of an evaluated set."""
        return slice(self.accelerator.process_index, None, self.accelerator.num_processes)

    @torch.no_grad()
    def _score(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
        """Counts (true class, predicted class) over all processes, and the mean cross-entropy."""
        classes = cast(int, model.num_classes)
        counts = torch.zeros(classes * classes, dtype=torch.int64, device=self.device)
        total = torch.zeros((), device=self.device)
        for images, labels in batches:
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
            logits = model(self.normalize(images)).float()
            counts += torch.bincount(labels * classes + logits.argmax(dim=1), minlength=classes * classes)
            total += F.cross_entropy(logits, labels, reduction="sum")
        counts, total = (cast(Tensor, self.accelerator.reduce(sums, "sum")) for sums in (counts, total))
        return counts.view(classes, classes), (total / counts.sum()).item()


def _accuracy(confusion: Tensor) -> float:
    """The share of images of their own class in percent."""
    hits, total = torch.stack((confusion.trace(), confusion.sum())).tolist()
    return 100 * hits / total
