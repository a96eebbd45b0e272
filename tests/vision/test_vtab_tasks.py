"""The 19 tasks against the table of google-research/task_adaptation, written out here a second time."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import yaml

from capaboost_vision.vtab import rendered
from capaboost_vision.vtab.tasks import GROUPS, TASKS
from tests.vision.feature_examples import pixels, random_example

CONFIGS = Path(__file__).parents[2] / "configs" / "vtab"
# task: builder, classes, test images, rows of val200, rows of test, images that each split of the builder has,
# published test accuracy of LoRA, NOAH and FacT (ViT-B/16 IN-21k)
ROWS = """
caltech101 caltech101 102 6084 train:2754 test:0 train=3059,test=6084 91.4 92.7 90.6
cifar cifar100 100 10000 train:45000 test:0 train=50000,test=10000 67.1 69.6 70.6
dtd dtd 47 1880 validation:0 test:0 train=1880,validation=1880,test=1880 69.4 70.2 70.8
oxford_flowers102 oxford_flowers102 102 6149 validation:0 test:0 train=1020,validation=1020,test=6149 98.8 99.1 99.1
oxford_iiit_pet oxford_iiit_pet 37 3669 train:2944 test:0 train=3680,test=3669 90.4 90.4 90.7
svhn svhn_cropped 10 26032 train:65931 test:0 train=73257,test=26032 85.3 86.1 88.6
sun397 sun397/tfds 397 21750 validation:0 test:0 train=76128,validation=10875,test=21750 54.0 53.7 54.1
patch_camelyon patch_camelyon 2 32768 validation:0 test:0 train=262144,validation=32768,test=32768 84.9 84.4 84.8
eurosat eurosat/rgb 10 5400 train:16200 train:21600 train=27000 95.3 95.4 96.2
resisc45 resisc45 45 6300 train:18900 train:25200 train=31500 84.4 83.9 84.5
diabetic_retinopathy diabetic_retinopathy_detection/btgraham-300 5 42670 validation:0 test:0 \
train=35126,validation=10906,test=42670 73.6 75.8 75.7
clevr_count clevr 8 15000 train:63000 validation:0 train=70000,validation=15000,test=15000 82.9 82.8 82.6
clevr_dist clevr 6 15000 train:63000 validation:0 train=70000,validation=15000,test=15000 69.2 68.9 68.2
dmlab dmlab 6 22735 validation:0 test:0 train=65550,validation=22628,test=22735 49.8 49.9 49.8
kitti kitti 4 711 validation:0 test:0 train=6347,validation=423,test=711 78.5 81.7 80.7
dsprites_loc dsprites 16 73728 train:589824 train:663552 train=737280 75.7 81.8 80.8
dsprites_ori dsprites 16 73728 train:589824 train:663552 train=737280 47.1 48.3 47.4
smallnorb_azi smallnorb 18 12150 test:0 test:12150 train=24300,test=24300 31.0 32.8 33.2
smallnorb_ele smallnorb 9 12150 test:0 test:12150 train=24300,test=24300 44.0 44.2 43.0
"""
TABLE = {line.split()[0]: line.split()[1:] for line in ROWS.strip().splitlines()}


def test_tasks_and_groups_stand_in_the_table_s_order():
    assert list(TASKS) == list(TABLE)
    assert [len(GROUPS[name]) for name in ("natural", "specialized", "structured")] == [7, 4, 8]
    assert [name for group in GROUPS.values() for name in group] == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_builder_and_classes(name):
    builder, classes = TABLE[name][:2]
    assert (TASKS[name].builder, TASKS[name].num_classes) == (builder, int(classes))


def rows_of(name: str, split: str) -> list[tuple[str, int]]:
    """(split of the builder, row) of each image, as tfds itself understands the split's texts."""
    sizes = dict(part.split("=") for part in TABLE[name][5].split(","))
    infos = {
        key: tfds.core.SplitInfo(name=key, shard_lengths=[int(size)], num_bytes=0, filename_template=None)
        for key, size in sizes.items()
    }
    spans = [
        span
        for text in TASKS[name].splits(split)
        for span in tfds.core.ReadInstruction.from_spec(text).to_absolute(infos)
    ]
    return [(s.splitname, row) for s in spans for row in range(s.from_ or 0, int(s.to or sizes[s.splitname]))]


@pytest.mark.parametrize("name", TABLE)
def test_splits(name):
    count, val, test = TABLE[name][2:5]
    rows = {split: rows_of(name, split) for split in ("train800", "val200", "train800val200", "test")}
    assert [len(rows[split]) for split in rows] == [800, 200, 1000, int(count)]
    assert rows["train800"] == [("train", i) for i in range(800)]
    assert rows["train800val200"] == rows["train800"] + rows["val200"]
    assert not set(rows["train800val200"]) & set(rows["test"])
    assert len(set(rows["train800val200"])) == 1000
    for split, first in (("val200", val), ("test", test)):
        key, start = first.split(":")
        assert rows[split][0] == (key, int(start))


def clevr(*depths):
    return {"objects": {"pixel_coords": [np.array([200, 100, z], np.float32) for z in depths]}}


def kitti(*objects):
    locations = [np.array([1, 2, z], np.float32) for _, z in objects]
    return {"objects": {"type": [kind for kind, _ in objects], "location": locations}}


CASES = [
    *(("clevr_count", clevr(*range(1, n + 1)), n - 3) for n in (3, 4, 10)),
    *(("clevr_dist", clevr(50, z, 60), label) for z, label in (
        (0.01, 0), (8, 0), (8.001, 1), (8.5, 1), (8.501, 2), (9, 2), (9.001, 3), (9.5, 3), (9.501, 4), (10, 4),
        (10.001, 5), (49.9, 5)
    )),
    *(("kitti", kitti((0, z), (2, 5000)), label) for z, label in (
        (-5, 0), (8, 0), (8.001, 1), (20, 1), (20.001, 2), (999, 2), (999.5, 3)
    )),
    ("kitti", kitti(), 3),
    ("kitti", kitti((3, 1), (7, 2)), 3),
    ("kitti", kitti((3, 1), (2, 15)), 1),
    ("kitti", kitti((1, 30), (0, 7), (2, 12)), 0),
    *(("dsprites_loc", {"label_x_position": x, "label_y_position": 9}, label) for x, label in (
        (0, 0), (1, 0), (2, 1), (30, 15), (31, 15)
    )),
    *(("dsprites_ori", {"label_orientation": x, "label_scale": 9}, label) for x, label in (
        (0, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 2), (8, 3), (37, 14), (38, 15), (39, 15)
    )),
    ("smallnorb_azi", {"label_azimuth": 17, "label_elevation": 3, "label_category": 1}, 17),
    ("smallnorb_ele", {"label_azimuth": 17, "label_elevation": 8, "label_category": 1}, 8),
    ("cifar", {"label": 99, "coarse_label": 3}, 99),
    ("oxford_iiit_pet", {"label": 36, "species": 1}, 36),
]  # fmt: skip


@pytest.mark.parametrize(("name", "example", "label"), CASES)
def test_label_rules(name, example, label):
    got = TASKS[name].label(example)
    assert got == label
    assert type(got) is int


@pytest.mark.parametrize("name", TABLE)
def test_rules_fit_the_builder_s_own_features(name, tmp_path):
    """What reading yields: an example that went through the builder's encoding and back."""
    task = TASKS[name]
    try:
        features = tfds.builder(task.builder, data_dir=tmp_path).info.features
    except ImportError as error:
        pytest.skip(f"the builder {task.builder} does not import here: {error}")
    if "label" in features:
        assert features["label"].num_classes == task.num_classes
    rng = np.random.default_rng(0)
    levels, scale = (2, 255) if task.builder == "dsprites" else (256, 1)
    for _ in range(4):
        raw = random_example(features, rng, levels)
        example = features.deserialize_example_np(features.serialize_example(features.encode_example(raw)))
        label, image = task.label(example), task.image(example)
        assert type(label) is int
        assert 0 <= label < task.num_classes
        assert image.dtype == np.uint8
        assert np.array_equal(image, pixels(raw["image"]) * np.uint8(scale))


@pytest.mark.parametrize("name", TABLE)
def test_config_carries_its_command_and_the_result_to_expect(name):
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == f"# accelerate launch tools/train_vtab.py --dataset {name}"
    lora, noah, fact = TABLE[name][6:]
    assert lines[1].startswith("# ")
    assert f"LoRA {lora}, NOAH {noah}, FacT {fact}" in lines[1]
    settings = yaml.safe_load("\n".join(lines))
    data = {"dataset": name, "num_classes": int(TABLE[name][1])}
    assert settings == {"base": "_base.yaml", "data": data}


def test_every_config_belongs_to_a_task():
    own = {*TABLE, "digits", *rendered.RENDERED}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*own, "_base", "_micro", "_own", "_rendered"}
