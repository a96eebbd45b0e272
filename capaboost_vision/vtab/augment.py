"""Training images that are cropped, mirrored and changed anew in every epoch, by timm's own transforms."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from tqdm import tqdm

from capaboost_core.errors import UserError, reason_of
from capaboost_core.task import content_hash
from capaboost_vision.vtab.sources import ResizedImages
from capaboost_vision.vtab.task import ImageTask, Normalize

BASIC = "basic"  # a random crop and its mirror image, without a policy of timm's
ENLARGEMENT = 2  # images are in memory with shorter sides up to so many times the model's input


class Augment:
    """timm's training transform: a random crop of 8 to 100 % of the area, resized; mirrored or not; then a policy.

    Args:
        policy: `basic` for none, or what timm's `auto_augment` takes, such as `rand-m9-mstd0.5-inc1`.
        size: (height, width) in pixels.
        mean: Of the channels, from 0 to 1, with which timm fills what a shift or rotation leaves empty.

    Raises:
        UserError: If timm has no such policy.
    """

    def __init__(self, policy: str, size: tuple[int, int], mean: Sequence[float]):
        try:
            make: Any = create_transform  # its hints lack the None that its code reads
            self.transform = make(
                (3, *size),
                is_training=True,
                use_prefetcher=True,  # bytes, which are normalized on the device
                color_jitter=None,
                auto_augment=None if policy == BASIC else policy,
                interpolation="bicubic",
                mean=tuple(mean),
            )
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"data.augment: timm does not read {policy!r} ({reason_of(error)}); type basic, or a policy such as "
                "rand-m9-mstd0.5-inc1"
            ) from error

    def __call__(self, images: Sequence[np.ndarray], keys: Sequence[tuple[int, ...]]) -> Tensor:
        """uint8 images (height, width, 3) of any size -> (n, 3, height, width); each depends on its key alone."""
        with _streams_kept():
            changed = []
            for image, key in zip(images, keys, strict=True):
                _start_streams(key)
                changed.append(self.transform(Image.fromarray(image)))
        return torch.stack(changed)


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Leave the random numbers of Python, NumPy and torch's CPU as they are: timm's transforms draw from all three."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _start_streams(key: tuple[int, ...]) -> None:
    seeds = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(int(seeds[2]))  # `torch.manual_seed` would start the GPUs' streams, too


class AugmentedImageTask(ImageTask):
    """An `ImageTask` whose training images are changed anew in every epoch, while what is evaluated stays as it is.

    How an image is changed depends on (seed, epoch, row) alone. So neither slices nor processes nor a resumed run
    change it. The images lie in host memory, undistorted.

    Args:
        train: uint8 images (height, width, 3), as `decode_whole` gives them, and their labels.
        augment: What changes them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        normalize: Normalize,
        train: tuple[list[np.ndarray], Tensor],
        val: tuple[Tensor, Tensor] | None,
        test: ResizedImages,
        batch_size: int,
        seed: int,
        augment: Augment,
    ):
        images, labels = train
        super().__init__(accelerator, normalize, (torch.empty(0), labels), val, test, batch_size, seed)
        self.originals, self.augment = images, augment

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """Numbers epoch * examples + row, in the order of (seed, epoch), on the CPU."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.examples)
        return torch.from_numpy(epoch * self.examples + order).split(self.batch_size)

    def fingerprint(self) -> str:
        """Of the images and labels to train and select on."""
        return content_hash([*self.originals, *(tensor.cpu().numpy() for tensor in (self.labels, *(self.val or ())))])

    def rows(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's changed images and labels, on the device."""
        numbers = batch.tolist()
        images = [self.originals[number % self.examples] for number in numbers]
        changed = self.augment(images, [(self.seed, number) for number in numbers])
        return changed.to(self.device), self.labels[(batch % self.examples).to(self.device)]


def decode_whole(dataset: ResizedImages, description: str) -> tuple[list[np.ndarray], Tensor]:
    """All images of a dataset, not distorted, as uint8 (height, width, 3), and their labels, with a progress bar.

    Larger ones are reduced until their shorter side is twice the longer side of the model's input.
    """
    most = ENLARGEMENT * max(dataset.height, dataset.width)
    images, labels = [], []
    for i in tqdm(range(len(dataset)), description, leave=False, disable=None):  # None: shown on a terminal only
        image, label = dataset.image(i)
        if min(image.size) > most:
            ratio = most / min(image.size)
            image = image.resize((round(ratio * image.width), round(ratio * image.height)), Image.Resampling.BICUBIC)
        images.append(np.array(image))
        labels.append(label)
    return images, torch.tensor(labels)
