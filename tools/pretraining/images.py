"""Images to pretrain on: Parquet files decoded once, and what training does to a batch on its device."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from capaboost_core.errors import UserError
from capaboost_core.files import explained, write_atomically

MEAN, STD = 127.5, 127.5


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
        write_atomically(cache, lambda file: np.savez(file, **data))
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
