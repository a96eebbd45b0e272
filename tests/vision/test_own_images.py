"""Images of one's own: class folders, train/ and val/ above them, tables; how they are split; what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from capaboost.runs.settings import VisionDataSection, VisionModelSection, VtabRun
from capaboost.runs.vtab import prepare
from capaboost.training.settings import TrainSection
from capaboost_core import CapaBoostConfig
from capaboost_core.errors import UserError
from capaboost_vision.vtab import own
from capaboost_vision.vtab.own import read_own
from capaboost_vision.vtab.sources import class_names, num_classes, open_split


def image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    for name, count in {"dog": 10, "cat": 15, "Ünï çode": 1}.items():
        for i in range(count):
            image(tmp_path / name / ("deep" if i == 3 else "") / f"{i}.png", i)
    (tmp_path / "dog" / "notes.txt").write_text("none")
    (tmp_path / "dog" / ".hidden.png").write_text("none")
    return tmp_path


def counts(root: Path, split: str, share: float = 0.2, seed: int = 0) -> Counter:
    images = read_own(root, share, seed)
    return Counter(images.classes[label] for _, label in images.rows(split, share, seed))


def test_class_folders_are_split_by_class(photos):
    assert class_names("images", photos) == ("cat", "dog", "Ünï çode")
    assert num_classes("photos", "images", photos) == 3
    assert counts(photos, "train800val200") == {"cat": 12, "dog": 8, "Ünï çode": 1}
    assert counts(photos, "test") == {"cat": 3, "dog": 2}
    assert counts(photos, "train800") + counts(photos, "val200") == counts(photos, "train800val200")
    assert counts(photos, "val200") == {"cat": 2, "dog": 2}
    remarks = read_own(photos, 0.2, 0).remarks
    assert any("notes.txt" in remark for remark in remarks)
    assert any("Ünï çode" in remark and "one training image" in remark for remark in remarks)
    assert not any(".hidden" in remark for remark in remarks)


def test_no_row_is_in_two_splits_and_the_seed_decides(photos):
    images = read_own(photos, 0.2, 0)
    parts = {split: {path for path, _ in images.rows(split, 0.2, 0)} for split in ("train800", "val200", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 26
    others = [{path for path, _ in read_own(photos, 0.2, seed).splits["test"]} for seed in range(4)]
    assert len(set(map(frozenset, others))) > 1


def test_the_split_depends_on_names_alone(photos, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    photos.rename(moved)
    before = {path.relative_to(moved) for path, _ in read_own(moved, 0.2, 0).splits["test"]}
    image(moved / "dog" / "new.png")  # 11 images still hold out two
    after = {path.relative_to(moved) for path, _ in read_own(moved, 0.2, 0).splits["test"]}
    assert len(before & after) >= len(before) - 1


def test_given_splits_are_kept(tmp_path):
    for split, count in {"train": 6, "validation": 2, "test": 3}.items():
        for name in ("a", "b"):
            for i in range(count):
                image(tmp_path / split / name / f"{i}.jpg")
    (tmp_path / "raw").mkdir()
    assert [counts(tmp_path, split)["a"] for split in ("train800", "val200", "train800val200", "test")] == [6, 2, 8, 3]
    assert any("raw" in remark for remark in read_own(tmp_path, 0.2, 0).remarks)


def test_validation_rows_measure_where_no_others_do(tmp_path):
    for split, count in {"train": 5, "val": 2}.items():
        for name in ("a", "b"):
            for i in range(count):
                image(tmp_path / split / name / f"{i}.jpg")
    assert [counts(tmp_path, split)["a"] for split in ("train800val200", "train800", "val200", "test")] == [5, 4, 1, 2]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_names_paths_and_labels(tmp_path, ending):
    comma = "," if ending == "csv" else "\t"
    lines = [comma.join(("filename", "class", "split"))]
    for i in range(12):
        image(tmp_path / "all" / f"{i}.png", i)
        lines.append(comma.join((f"all/{i}.png", "even" if i % 2 == 0 else "odd", "test" if i > 7 else "")))
    (tmp_path / f"labels.{ending}").write_text("\n".join(lines))
    opened = open_split("x", "images", tmp_path / f"labels.{ending}", "test", 4)
    assert [(int(opened[i][0][0, 0, 0]), opened[i][1]) for i in range(4)] == [(8, 0), (9, 1), (10, 0), (11, 1)]
    assert counts(tmp_path / f"labels.{ending}", "train800val200") == {"even": 4, "odd": 4}


def broken(root: Path, case: str) -> Path:
    image(root / "a" / "1.png")
    if case == "loose images":
        image(root / "1.png")
    if case in ("an empty class", "no images", "a missing file"):
        (root / "b").mkdir()
    if case == "no images":
        (root / "a" / "1.png").unlink()
    if case == "a missing file":
        (root / "t.csv").write_text("path,label\na/1.png,x\na/2.png,y\n")
        return root / "t.csv"
    if case == "no header":
        (root / "t.csv").write_text("a/1.png,x\n")
        return root / "t.csv"
    if case == "a class that is only measured":
        image(root / "train" / "a" / "1.png")
        image(root / "train" / "b" / "1.png")
        image(root / "val" / "c" / "1.png")
    return root / "none" if case == "no folder" else root


REFUSED = {
    "loose images": "images in no class, such as '1.png'",
    "an empty class": "b holds no image; add some, or remove the folder",
    "no images": "a holds no image",
    "one class": "images of one class, 'a'",
    "no folder": "there is no",
    "a missing file": "line 3: there is no image",
    "no header": "no column is called path",
    "a class that is only measured": "class 'c' has images to measure but none to train",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_train_is_one_line(case, tmp_path):
    with pytest.raises(UserError, match=REFUSED[case]):
        read_own(broken(tmp_path, case), 0.2, 0)


def test_a_run_lists_the_images_once_and_the_next_run_anew(photos, monkeypatch):
    listed = []
    monkeypatch.setattr(own, "_of_folders", lambda root, read=own._of_folders: listed.append(root) or read(root))
    data = VisionDataSection(dataset="mine", source="images", dir=str(photos))
    model = VisionModelSection(name="test_vit", pretrained=False)
    run = VtabRun(model, data, TrainSection(epochs=1, batch_size=2), CapaBoostConfig(r=2))
    assert prepare(run, Accelerator(cpu=True)).task.classes == ("cat", "dog", "Ünï çode")
    assert len(listed) == 1
    image(photos / "emu" / "1.png")
    assert prepare(run, Accelerator(cpu=True)).task.classes == ("cat", "dog", "emu", "Ünï çode")


def test_classes_are_known_by_name_where_a_split_lacks_one(tmp_path):
    for name in ("0", "180", "270", "90"):
        image(tmp_path / "train" / name / "1.png", int(name) % 251)
        image(tmp_path / "train" / name / "2.png", int(name) % 251)
        if name != "180":
            image(tmp_path / "test" / name / "1.png", int(name) % 251)
    names, opened = class_names("images", tmp_path), open_split("x", "images", tmp_path, "test", 4)
    assert [(names[label], int(pixels[0, 0, 0])) for pixels, label in opened] == [("0", 0), ("270", 19), ("90", 90)]
