"""Any image as RGB of 8 bits: wider pixels are scaled, never cut off at 255; those of unknown white are refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from capaboost_core.errors import UserError

MOST_PIXELS = 89_478_485  # where PIL warns of a decompression bomb
SMALLEST_DEEP = 256  # 32-bit integers below it may be those of 8 bits


def open_rgb(path: Path) -> Image.Image:
    """The first frame of an image file as `to_rgb` makes it; its EXIF orientation is left as it is.

    Raises:
        UserError: If it is not an image, damaged, too large, or has pixels without a known white. The message
            goes on from the name of the image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            with Image.open(path) as image:
                _check_size(image.width * image.height)
                return to_rgb(image)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except Exception as error:  # decoders fail in many ways on damaged files
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
