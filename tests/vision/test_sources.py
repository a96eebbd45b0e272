"""The folder source on real images and on broken input, the digits, and what is the same for all sources."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from sklearn.datasets import load_digits

from capaboost.runs.settings import VisionDataSection, VisionModelSection, VtabRun
from capaboost.runs.vtab import prepare
from capaboost.training.settings import TrainSection
from capaboost_core import CapaBoostConfig
from capaboost_core.errors import UserError
from capaboost_vision.vtab.sources import SPLITS, decode, num_classes, open_split
from tests.real_data import real_data

REAL = {"cifar": (800, 200, 1000, 10000), "oxford_flowers102": (800, 200, 1000, 6149)}


@pytest.mark.parametrize("name", REAL)
def test_real_folder_sizes_and_labels(name):
    folder = real_data("vtab-1k", name)
    for split, size in zip(SPLITS, REAL[name], strict=True):
        dataset = open_split(name, "folder", folder.parent, split, 32)
        assert len(dataset) == size == len((folder / f"{split}.txt").read_text().splitlines())
    assert num_classes(name, "folder", folder.parent) == {"cifar": 100, "oxford_flowers102": 102}[name]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(("height", "width"), [(24, 40), (32, 32)])
def test_real_pixels_are_those_of_pil(name, height, width):
    folder = real_data("vtab-1k", name)
    lines = (folder / "val200.txt").read_text().splitlines()
    dataset = open_split(name, "folder", str(folder.parent), "val200", (height, width))
    for index in (0, 7, 199):
        path, label = lines[index].split(" ")
        wanted = Image.open(folder / path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        image, got = dataset[index]
        assert (image.dtype, image.shape, got) == (torch.uint8, (3, height, width), int(label))
        assert all(np.array_equal(image[c].numpy(), np.asarray(wanted)[..., c]) for c in range(3))


def save(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (grey, grey, grey)).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A task `mine` of two classes, in the shared layout; one path has a blank."""
    save(tmp_path / "mine" / "images" / "a.png", 10)
    save(tmp_path / "mine" / "images" / "b c.png", 20)
    for split in SPLITS:
        (tmp_path / "mine" / f"{split}.txt").write_text("images/a.png 0\n\nimages/b c.png 1\n")
    return tmp_path


def test_a_folder_of_your_own(folder):
    images, labels = decode(open_split("mine", "folder", folder, "train800", (5, 3)), "train800")
    assert (images.dtype, images.shape) == (torch.uint8, (2, 3, 5, 3))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1]
    assert [set(image.flatten().tolist()) for image in images] == [{10}, {20}]
    assert num_classes("mine", "folder", folder) == 2


@pytest.mark.hard_case("messages")
def test_a_list_may_have_a_byte_order_mark_and_windows_line_ends(folder):
    (folder / "mine" / "test.txt").write_bytes(b"\xef\xbb\xbfimages/a.png 0\r\nimages/b c.png 1\r\n")
    assert decode(open_split("mine", "folder", folder, "test", 2), "test")[1].tolist() == [0, 1]


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(("label", "gap"), [(3, 2), (30_000_000, 2)])
def test_a_gap_in_the_labels_makes_no_class(label, gap, folder):
    (folder / "mine" / "train800val200.txt").write_text(f"images/a.png 0\nimages/a.png 1\nimages/a.png {label}\n")
    message = f"has label {label}, but no image of class {gap}; .* --set data.num_classes={label + 1} if"
    with pytest.raises(UserError, match=message):
        num_classes("mine", "folder", folder)


@pytest.mark.hard_case(32)
@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("protocol", ["test", "select"])
def test_one_class_is_no_task(count, protocol, folder):
    for path in (folder / "mine").glob("train*.txt"):
        path.write_text("images/a.png 0\nimages/b c.png 0\n")
    data = VisionDataSection(dataset="mine", source="folder", dir=str(folder), num_classes=count, protocol=protocol)
    run = VtabRun(VisionModelSection(name="test_vit", pretrained=False), data, TrainSection(), CapaBoostConfig())
    with pytest.raises(UserError, match=r"mine train.* has images of one class only; list images of two or more"):
        prepare(run, Accelerator(cpu=True))


BROKEN_LISTS = {
    "no label": ("images/a.png 0\nimages/a.png\n", "mine/test.txt, line 2: 'images/a.png' is not of the form"),
    "a word": ("images/a.png cat\n", "mine/test.txt, line 1: 'images/a.png cat' is not of the form"),
    "negative": ("images/a.png -1\n", "mine/test.txt, line 1: 'images/a.png -1' is not of the form"),
    "no image": ("\nimages/a.png 0\nimages/z.png 1\n", "mine/test.txt, line 3: there is no image"),
    "a sign": ("images/a.png +1\n", "line 1: 'images/a.png +1' is not of the form"),
    "other digits": ("images/a.png \u0663\n", "line 1: 'images/a.png \u0663' is not of the form"),
    "5,000 digits": (f"images/a.png {'9' * 5000}\n", "line 1: 'images/a.png 999"),
    "a long name": (f"{'a' * 5000} 1\n", "line 1: there is no image 'aaa"),
    "no character": ("images/\0 1\n", "line 1: there is no image 'images/\\x00'"),
    "a folder": ("images 1\n", "line 1: there is no image 'images'"),
    "empty": ("\n", "mine/test.txt lists no image"),
    "bytes": (b"\xff\xfe\x00", "mine/test.txt is not readable as text; write it as UTF-8"),
}


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("case", BROKEN_LISTS)
def test_broken_lists_are_refused_on_opening(case, folder):
    content, message = BROKEN_LISTS[case]
    (folder / "mine" / "test.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refusal("mine", "folder", folder, "test")
    assert message in text
    assert len(text) < 600


def refusal(dataset: str, source: str, data_dir: Path | None, split: str) -> str:
    with pytest.raises(UserError) as caught:
        open_split(dataset, source, data_dir, split, 8)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_label_outside_the_task_s_range_is_refused_on_opening(folder):
    (folder / "mine").rename(folder / "kitti")
    (folder / "kitti" / "test.txt").write_text("images/a.png 3\nimages/a.png 4\n")
    assert "kitti/test.txt, line 2: label 4 is outside 0 to 3" in refusal("kitti", "folder", folder, "test")


WRONG = {
    "task": (("dtdd", "tfds", None, "test"), "VTAB-1k has no task 'dtdd'; type one of dtd,"),
    "all tasks": (("qqqq", "tfds", None, "test"), "caltech101, cifar, dtd"),
    "source": (("dtd", "tdfs", None, "test"), "there is no source 'tdfs'; type one of tfds, folder, images, digits"),
    "split": (("digits", "digits", None, "val"), "there is no split 'val'; type one of train800, val200"),
    "digits": (("dtd", "digits", None, "test"), "pass --dataset digits"),
    "rendered": (
        ("dtd", "rendered", None, "test"),
        "source rendered has no task 'dtd'; type one of dsprites_loc, dsprites_ori, shapes_count, shapes_dist, "
        "shapes_joint, random_labels, random_labels_3k",
    ),
    "rendered dir": (("shapes_dist", "rendered", "x", "test"), "reads no folder; drop --data-dir"),
    "no dir": (("mine", "folder", None, "test"), "source folder needs --data-dir"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_names(case):
    arguments, message = WRONG[case]
    assert message in refusal(*arguments)


def test_missing_folders_and_lists(folder):
    assert "has no folder yours; it holds mine" in refusal("yours", "folder", folder, "test")
    assert "none has no folder mine; give" in refusal("mine", "folder", folder / "none", "test")
    (folder / "mine" / "val200.txt").unlink()
    assert "mine/val200.txt is missing" in refusal("mine", "folder", folder, "val200")
    (folder / "mine" / "train800val200.txt").unlink()
    with pytest.raises(UserError, match=r"train800val200\.txt is missing"):
        num_classes("mine", "folder", folder)


@pytest.mark.hard_case("messages")
def test_an_unreadable_image_is_named(folder):
    path = folder / "mine" / "images" / "a.png"
    whole = path.read_bytes()
    broken_chunk = bytearray(whole)
    broken_chunk[whole.index(b"IDAT") - 1] = 4  # a wrong length, at which PIL raises SyntaxError
    for content in (b"", b"no image", whole[: whole.index(b"IDAT") + 6], bytes(broken_chunk)):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            decode(open_split("mine", "folder", folder, "test", 8), "test")
        place = f"{folder / 'mine' / 'test.txt'}, line 1: {path}"
        assert str(caught.value).startswith(f"{place} is not a readable image; replace it or drop its line")
        assert "\n" not in str(caught.value)


def test_digits_are_scikit_learn_s_in_disjoint_splits():
    digits = load_digits().images, load_digits().target
    known = {np.round(image * 255 / 16).astype(np.uint8).tobytes(): y for image, y in zip(*digits, strict=True)}
    sets = {}
    for split, size in zip(SPLITS, (800, 200, 1000, 797), strict=True):
        images, labels = decode(open_split("digits", "digits", None, split, 8), split)
        assert len(images) == size
        assert (images[:, 0] == images[:, 1]).all()
        assert (images[:, 0] == images[:, 2]).all()
        keys = [image[0].numpy().tobytes() for image in images]
        assert [known[key] for key in keys] == labels.tolist()
        assert int(images.max()) == 255
        sets[split] = set(keys)
    assert sets["train800val200"] == sets["train800"] | sets["val200"]
    assert len(sets["train800"] | sets["val200"] | sets["test"]) == len(known) == 1797
    assert num_classes("digits", "digits", None) == 10


def test_the_digits_split_stands_still():
    labels = [open_split("digits", "digits", None, "train800", 8)[i][1] for i in range(12)]
    assert labels == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1, 1, 9]


def folder_run(folder: Path, **train) -> VtabRun:
    data = VisionDataSection(dataset="mine", source="folder", dir=str(folder))
    model = VisionModelSection(name="test_vit", pretrained=False, drop_path_rate=0.0)
    return VtabRun(model, data, TrainSection(**{"epochs": 1, "batch_size": 2} | train), CapaBoostConfig(r=2))


def test_a_damaged_test_image_is_named_before_training(folder):
    """Cut within its pixels, it opens and tells its size."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = folder / "mine" / "images" / "last.jpg"
    Image.fromarray(noise).save(path)
    (folder / "mine" / "test.txt").write_text("images/a.png 0\nimages/last.jpg 1\n")
    prepare(folder_run(folder), Accelerator(cpu=True))
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(UserError, match=r"mine/test\.txt, line 2: .*last\.jpg is not a readable image; replace it"):
        prepare(folder_run(folder), Accelerator(cpu=True))


def test_turned_photographs_are_said_in_the_note(folder):
    exif = Image.Exif()
    exif[0x0112] = 8
    setup = prepare(folder_run(folder), Accelerator(cpu=True))
    assert setup.split_note == "rows that the folder holds"
    Image.new("RGB", (6, 4)).save(folder / "mine" / "images" / "a.png", exif=exif)  # in both splits
    setup = prepare(folder_run(folder), Accelerator(cpu=True))
    assert setup.split_note == "rows that the folder holds; 2 images turned upright as their EXIF says"


def test_decoded_images_are_in_memory_once():
    alive = []

    class Images:
        def __len__(self):
            return 50

        def __getitem__(self, index):
            image = torch.full((3, 4, 5), index, dtype=torch.uint8)
            alive.append(weakref.ref(image))
            assert sum(ref() is not None for ref in alive) <= 2
            return image, index

    images, labels = decode(Images(), "train800")
    assert (images.dtype, images.shape, labels.dtype) == (torch.uint8, (50, 3, 4, 5), torch.int64)
    assert images[:, 2, 3, 4].tolist() == labels.tolist() == list(range(50))
