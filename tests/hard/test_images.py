"""An image file or list of any content is read right, or refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from capaboost_vision.vtab.sources import SPLITS, decode, num_classes, open_split
from tests.hard.oracle import attempt, refused, scratch
from tests.hard.values import damaged

SUFFIXES = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "BMP": "bmp", "GIF": "gif", "WEBP": "webp"}
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "I", "I;16", "F")
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))


def write(folder: Path, name: str, content: bytes, listing: str | None = None) -> Path:
    task = folder / "mine"
    (task / "images").mkdir(parents=True, exist_ok=True)
    (task / "images" / name).write_bytes(content)
    for split in SPLITS:
        (task / f"{split}.txt").write_bytes((listing or f"images/{name} 0\nimages/{name} 1\n").encode())
    return folder


def encoded(image: Image.Image, kind: str) -> bytes | None:
    """The image file, or None where the format does not hold the mode."""
    file = io.BytesIO()
    try:
        image.save(file, kind)
    except (OSError, ValueError, KeyError):
        return None
    return file.getvalue()


def read(folder: Path, size: tuple[int, int] = (8, 8)):
    return decode(open_split("mine", "folder", folder, "test", size), "test")


def of_mode(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return Image.fromarray(pixels).convert("RGBA").convert({"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode, mode))
    if mode in ("I", "I;16"):
        return Image.fromarray(rng.integers(0, 2**16, size[::-1], dtype=np.int32 if mode == "I" else np.uint16))
    if mode == "F":
        return Image.fromarray(rng.normal(size=size[::-1]).astype(np.float32))
    if mode == "LAB":
        return Image.frombytes("LAB", size, pixels.tobytes())
    return Image.fromarray(pixels).convert(mode)


@given(mode=st.sampled_from(MODES), kind=st.sampled_from(sorted(SUFFIXES)), size=SIZES, seed=st.integers(0, 99))
def test_every_mode_and_format(mode, kind, size, seed):
    image = of_mode(mode, size, seed)
    content = encoded(image, kind)
    if content is None:
        return
    with scratch() as folder:
        write(folder, f"a.{SUFFIXES[kind]}", content)
        got = attempt(lambda: read(folder, size[::-1]), folder)
        assert content is not None
        if not refused(got):
            with Image.open(io.BytesIO(content)) as stored:
                check(got[0][0].permute(1, 2, 0).numpy(), stored)


def check(pixels: np.ndarray, stored: Image.Image) -> None:
    """8 bits are PIL's RGB; wider pixels are scaled by their white, not cut off."""
    assert pixels.dtype == np.uint8
    if stored.mode.startswith(("I", "F")):
        values = np.asarray(stored).astype(float)
        white = 1.0 if stored.mode == "F" else 65535.0
        assert values.min() >= 0, "negative pixels were read"
        assert values.max() <= white, "pixels above white were read"
        assert np.abs(pixels - values[..., None] / white * 255).max() <= 1
    else:
        assert np.array_equal(pixels, np.asarray(stored.convert("RGB")))


@given(
    values=arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.floats(width=32)),
    scaled=st.booleans(),
)
def test_float_pixels_of_any_value(values, scaled):
    values = (np.nan_to_num(np.abs(values)) % 1.0).astype(np.float32) if scaled else values
    with scratch() as folder:
        write(folder, "a.tif", encoded(Image.fromarray(values), "TIFF"))
        got = attempt(lambda: read(folder, values.shape), folder)
        assert refused(got) != bool((values >= 0).all() and (values <= 1).all())


@given(data=st.data(), kind=st.sampled_from(sorted(SUFFIXES)), mode=st.sampled_from(["L", "P", "RGB"]))
def test_a_damaged_image(data, kind, mode):
    content = data.draw(damaged(encoded(of_mode(mode, (9, 7), 0), kind)))
    with scratch() as folder:
        write(folder, f"a.{SUFFIXES[kind]}", content)
        got = attempt(lambda: read(folder), folder)
        assert refused(got) or got[0].shape == (2, 3, 8, 8)


@given(content=st.binary(max_size=64))
def test_bytes_that_are_no_image(content):
    with scratch() as folder:
        assert refused(attempt(lambda: read(write(folder, "a.png", content)), None))


LINES = st.one_of(
    st.sampled_from(
        ["images/a.png 0", "images/a.png 1", "images/a.png  1", "", " ", "images/a.png", "images/a.png -1"]
    ),
    st.sampled_from(
        ["images/a.png 9" + "9" * 5000, "\ufeffimages/a.png 0", "images/../images/a.png 1", "/dev/null 0"]
    ),
    st.sampled_from(["images/a.png 30000000", "images/a.png ١", "images/a.png 1e0", "images 1", "x" * 5000 + " 1"]),
    st.builds("images/a.png {}".format, st.integers(-3, 12)),
    st.text(max_size=12),
)


@given(lines=st.lists(LINES, min_size=1, max_size=6), end=st.sampled_from(["\n", "\r\n", ""]))
def test_a_list_of_any_lines(lines, end):
    listing = (end or "\n").join(lines) + end
    with scratch() as folder:
        write(folder, "a.png", encoded(of_mode("L", (3, 3), 0), "PNG"), listing)
        classes = attempt(lambda: num_classes("mine", "folder", folder), folder)
        got = attempt(lambda: read(folder), folder)
        if not refused(classes):
            assert 1 <= classes <= 13
        if not refused(got):
            assert len(got[1]) == sum(bool(line.strip()) for line in listing.split("\n"))


@given(data=st.data(), content=st.just(b"images/a.png 0\nimages/a.png 1\n"))
def test_a_damaged_list(data, content):
    with scratch() as folder:
        write(folder, "a.png", encoded(of_mode("L", (3, 3), 0), "PNG"))
        (folder / "mine" / "test.txt").write_bytes(data.draw(damaged(content)))
        attempt(lambda: read(folder), folder)
