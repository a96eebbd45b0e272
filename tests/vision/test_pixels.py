"""Images of every kind become RGB of 8 bits, or are refused by name: nothing is cut off or shifted in silence."""

import struct
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from capaboost_core.errors import UserError
from capaboost_vision.vtab import pixels
from capaboost_vision.vtab.pixels import check_image, is_turned, open_rgb, to_rgb
from capaboost_vision.vtab.sources import ResizedImages, open_split

DEEP = np.linspace(0, 65535, 30).round().astype(np.uint16).reshape(5, 6)
EIGHT = np.round(DEEP / 257).astype(np.uint8)
COLOURS = np.stack([EIGHT, EIGHT[::-1], EIGHT[:, ::-1]], axis=-1)
GOOD = {
    "16 bits": ("a.png", Image.fromarray(DEEP), EIGHT),
    "16 bits, big end first": ("a.tif", Image.fromarray(DEEP.astype(">u2")), EIGHT),
    "32-bit integers": ("a.tif", Image.fromarray(DEEP.astype(np.int32)), EIGHT),
    "16 bits of a PGM": ("a.pgm", Image.fromarray(DEEP), EIGHT),
    "floats": ("a.tif", Image.fromarray((EIGHT / 255).astype(np.float32)), EIGHT),
    "black integers": ("a.tif", Image.fromarray(np.zeros((5, 6), np.int32)), EIGHT * 0),
    "grey": ("a.png", Image.fromarray(EIGHT), EIGHT),
    "1 bit": ("a.png", Image.fromarray(EIGHT).convert("1"), Image.fromarray(EIGHT).convert("1").convert("L")),
    "a palette": ("a.png", Image.fromarray(EIGHT).convert("P"), EIGHT),
    "grey with alpha": ("a.png", Image.fromarray(np.stack([EIGHT, EIGHT[::-1]], -1), "LA"), EIGHT),
    "alpha is dropped": ("a.png", Image.fromarray(np.dstack([COLOURS, EIGHT])), COLOURS),
    "ink": ("a.tif", Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
}


@pytest.mark.hard_case(30)
@pytest.mark.parametrize("case", GOOD)
def test_pixels_keep_their_share_of_white(case, tmp_path):
    name, image, wanted = GOOD[case]
    image.save(tmp_path / name)
    wanted = np.asarray(wanted)
    found = np.asarray(open_rgb(tmp_path / name))
    assert np.array_equal(found, wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=-1))


def test_a_tiff_of_12_bits_is_as_bright(tmp_path):
    """PIL writes none: one strip of two pixels, black and white, in three bytes."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    strip = b"\x00\x0f\xff\x00"
    content = struct.pack("<2sHI", b"II", 42, 12) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    assert np.asarray(open_rgb(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 255]


@pytest.mark.hard_case(30)
def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.fromarray(EIGHT), Image.fromarray(255 - EIGHT)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "a.gif"))[..., 0], EIGHT)


UPRIGHT = {  # what the first row and the first column of the stored array are, by the EXIF standard
    1: lambda a: a,
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a[::-1].swapaxes(0, 1),  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: a[:, ::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9, 65535])
def test_images_stand_upright_as_their_exif_says(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(COLOURS).save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    assert np.array_equal(np.asarray(open_rgb(path)), UPRIGHT.get(orientation, UPRIGHT[1])(COLOURS))
    assert check_image(path) == is_turned(path) == (2 <= orientation <= 8)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_grey_and_deep_pixels_are_turned_too(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for stored in (DEEP, EIGHT):
        Image.fromarray(stored).save(tmp_path / "a.tif", exif=exif)
        assert np.array_equal(np.asarray(open_rgb(tmp_path / "a.tif"))[..., 0], UPRIGHT[orientation](EIGHT))


def test_an_exif_that_cannot_be_read_turns_nothing(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9))
    with warnings.catch_warnings(action="ignore"):
        assert np.array_equal(np.asarray(open_rgb(tmp_path / "a.png")), COLOURS)
        assert not check_image(tmp_path / "a.png")


REFUSED = {
    "floats to 255": (EIGHT.astype(np.float32), "has float pixels from 0 to 255; scale them to 0 to 1"),
    "negative floats": (np.float32(-0.5) + DEEP.astype(np.float32) / 65535, "has float pixels from -0.5 to 0.5"),
    "not a number": (np.full((5, 6), np.nan, np.float32), "has float pixels from nan to nan"),
    "wide integers": (DEEP.astype(np.int32) * 2, "has pixels from 0 to 131070; scale them to 0 to 65535"),
    "8 bits in 32": (EIGHT.astype(np.int32), "has 32-bit pixels from 0 to 255, of unknown white"),
    "Lab": (Image.fromarray(COLOURS).convert("LAB"), "has Lab colours; save it as RGB"),
}


@pytest.mark.hard_case(30)
@pytest.mark.parametrize("case", REFUSED)
def test_pixels_of_unknown_white_are_refused_by_name_and_line(case, tmp_path):
    image, message = REFUSED[case]
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "a.tif"
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    (tmp_path / "mine" / "test.txt").write_text("\na.tif 0\n")
    with pytest.raises(UserError) as caught:
        open_split("mine", "folder", tmp_path, "test", 4)[0]
    assert str(caught.value).startswith(f"{tmp_path / 'mine' / 'test.txt'}, line 2: {path} {message}")


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("most", [29, 14])  # PIL warns of the one, and raises at the other
def test_an_image_above_the_limit_is_refused_and_nothing_warns(most, tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MOST_PIXELS", most)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    Image.fromarray(EIGHT).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=f"has more than {most} pixels; save it smaller"):
            open_rgb(tmp_path / "a.png")


@pytest.mark.hard_case("messages")
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="has more than 89,478,485 pixels; save it smaller"):
        open_rgb(tmp_path / "bomb.png")


ARRAYS = {
    "grey": EIGHT,
    "one channel": EIGHT[..., None],
    "16 bits": DEEP,
    "floats": EIGHT / 255,
    "halves": np.dstack([EIGHT / 255] * 3).astype(np.float32),
    "alpha": np.dstack([EIGHT] * 4),
}


@pytest.mark.hard_case(30)
@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_are_scaled_as_files_are(case):
    found = np.asarray(to_rgb(ARRAYS[case]))
    assert np.array_equal(found, np.repeat(EIGHT[..., None], 3, axis=-1))


@pytest.mark.hard_case(30)
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 2), np.uint8), r"image 0 has shape \(2, 3, 2\); it must be"),
        (np.zeros((3,), np.uint8), r"image 0 has shape \(3,\)"),
        (np.zeros((0, 3, 3), np.uint8), r"image 0 has shape \(0, 3, 3\)"),
        (np.zeros((2, 3), np.complex64), "image 0 has pixels of complex64"),
        (np.full((2, 3), 1.5), "image 0 has float pixels from 1.5 to 1.5"),
        (np.full((2, 3), -1, np.int64), "image 0 has pixels from -1 to -1"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    with pytest.raises(UserError, match=message):
        ResizedImages([(array, 0)], 4, 2)[0]


def test_images_are_checked_in_threads_that_change_no_filter_of_warnings(tmp_path, monkeypatch):
    class Same(pixels.ImageFiles):
        def __len__(self):
            return 4

        def row(self, index):
            return tmp_path / "a.png", "a.png", 0

    class Noted(warnings.catch_warnings):
        def __enter__(self):
            entered.append(threading.get_ident())
            return super().__enter__()

    entered = []
    Image.fromarray(EIGHT).save(tmp_path / "a.png")
    monkeypatch.setattr(warnings, "catch_warnings", Noted)
    assert Same().check() == 0
    assert set(entered) <= {threading.get_ident()}
