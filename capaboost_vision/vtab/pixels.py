"""Any image as RGB of 8 bits: wider pixels are scaled, never cut off at 255; those of unknown white are refused."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from capaboost_core.errors import UserError, is_no_memory

Read = TypeVar("Read")
MOST_PIXELS = 89_478_485  # where PIL warns of a decompression bomb
PLAIN = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")  # modes that `to_rgb` converts whatever they hold
SMALLEST_DEEP = 256  # 32-bit integers below it may be those of 8 bits


class ImageFiles:
    """A reader of image files; a subclass gives their number and rows."""

    def __len__(self) -> int:
        raise NotImplementedError

    def row(self, index: int) -> tuple[Path, str, int]:
        """The path of an image, how messages name it, and its label."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._read(open_rgb, index), self.row(index)[2]

    @property
    def turned(self) -> int:
        """How many images their EXIF turns or mirrors."""
        return sum(is_turned(self.row(index)[0]) for index in range(len(self)))

    def check(self) -> int:
        """Decode every image, on all cores; how many of them EXIF turns.

        Raises:
            UserError: It names the first that cannot be read.
        """
        with _unwarned(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return sum(pool.map(lambda index: self._read(_check_image, index), range(len(self))))

    def _read(self, read: Callable[[Path], Read], index: int) -> Read:
        path, name, _ = self.row(index)
        try:
            return read(path)
        except UserError as error:
            raise UserError(f"{name} {error}") from error


def open_rgb(path: Path) -> Image.Image:
    """The first frame of an image file as `to_rgb` makes it, turned upright as its EXIF says.

    Raises:
        UserError: If it is not an image, damaged, too large, or has pixels without a known white. The message
            goes on from the name of the image.
    """
    with _unwarned(), _opened(path) as image:
        image.load()
        with contextlib.suppress(Exception):  # an EXIF that cannot be read turns nothing
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def check_image(path: Path) -> bool:
    """Decode an image as `open_rgb` does, but a JPEG at an eighth of its size; whether its EXIF turns it.

    Raises:
        UserError: As `open_rgb`.
    """
    with _unwarned():
        return _check_image(path)


def _check_image(path: Path) -> bool:
    with _opened(path) as image:
        turned = _is_turned(image)  # before a TIFF is loaded, which turns it
        image.draft("RGB", (1, 1))  # all of its bytes are read, few pixels made
        if image.mode in PLAIN:
            image.load()
        else:
            to_rgb(image)
    return turned


def is_turned(path: Path) -> bool:
    """Whether the EXIF of an image turns or mirrors it; False where it cannot be opened."""
    with contextlib.suppress(UserError), _unwarned(), _opened(path) as image:
        return _is_turned(image)
    return False


def _is_turned(image: Image.Image) -> bool:
    with contextlib.suppress(Exception):  # an EXIF that cannot be read turns nothing
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    return False


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Within it PIL does not warn of what `_opened` refuses; entered before threads, which share their filters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        # By its name PIL 13 maps a grey TIFF into memory with the sides that it has after its turn.
        with open(path, "rb") as file, Image.open(file) as image:
            _check_size(image.width * image.height)
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except Exception as error:  # decoders fail in many ways on damaged files
        if is_no_memory(error):
            raise
        raise UserError("is not a readable image; replace it or drop its line") from error


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """An image of any mode, or an array (height, width) or (height, width, 1, 3 or 4), as RGB of 8 bits.

    Integers of 16 bits become round(value / 257), floats from 0 to 1 round(255 * value). An alpha channel is
    dropped, as PIL's `convert` does.

    Raises:
        UserError: If its shape is not an image's, or its white is not known. The message goes on from the
            name of the image.
    """
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)
    if image.mode.startswith(("I", "F")):
        return _array_to_rgb(np.asarray(image), _white(image))
    if image.mode == "LAB":  # PIL converts it to nothing else
        raise UserError("has Lab colours; save it as RGB")
    return image.convert("RGB")


def _array_to_rgb(array: np.ndarray, white: int = 65535) -> Image.Image:
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UserError(f"has shape {array.shape}; it must be (height, width) or (height, width, 1, 3 or 4)")
    _check_size(array.shape[0] * array.shape[1])
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] == 1 else array[..., :3]
    return Image.fromarray(np.ascontiguousarray(_to_bytes(array, white))).convert("RGB")


def _to_bytes(array: np.ndarray, white: int) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN, too, is not
            raise UserError(f"has float pixels from {low:g} to {high:g}; scale them to 0 to 1, or save it with 8 bits")
        return np.round(array * 255.0).astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise UserError(f"has pixels of {array.dtype}; save it with 8 bits")
    if low < 0 or high > white:
        raise UserError(f"has pixels from {low} to {high}; scale them to 0 to {white}, or save it with 8 bits")
    if array.dtype.itemsize != 2 and 0 < high < SMALLEST_DEEP:
        bits = 8 * array.dtype.itemsize
        raise UserError(f"has {bits}-bit pixels from {low} to {high}, of unknown white; save it with 8 or 16 bits")
    return np.round(array * (255 / white)).astype(np.uint8)


def _white(image: Image.Image) -> int:
    """The largest value of a pixel: a TIFF of 12 bits is not widened as it is read."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0] if image.mode.startswith("I;16") else 16
    return 2**bits - 1


def _check_size(pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise _too_large()


def _too_large() -> UserError:
    return UserError(f"has more than {MOST_PIXELS:,} pixels; save it smaller")
