"""The tfds source: a small array_record set that it really reads, and its answers where nothing is prepared."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from capaboost_core.errors import UserError
from capaboost_vision.vtab.sources import decode, num_classes, open_split
from capaboost_vision.vtab.tasks import TASKS, VtabTask, kitti
from capaboost_vision.vtab.tfds import prepare
from tests.vision.feature_examples import png, random_example

SIZES = {"train": 810, "validation": 7, "test": 5}


class TinyKitti(tfds.core.GeneratorBasedBuilder):
    """The features of kitti; image i holds the colour (i % 256, i // 256, split), so that it can be told again."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent

    def _info(self):
        features = tfds.builder("kitti", data_dir=self._data_dir_root).info.features
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(code, size) for code, (name, size) in enumerate(SIZES.items())}

    def _generate_examples(self, code, size):
        rng = np.random.default_rng(code)
        for i in range(size):
            example = random_example(self.info.features, rng)
            example["image"] = png(np.full((4, 6, 3), (i % 256, i // 256, code), np.uint8))
            example["objects"] = [one | {"type": 0, "location": [0, 0, depth(i)]} for one in example["objects"]]
            yield i, example


def depth(i: int) -> float:
    """Metres: 5, 15, 25 or beyond all bins, which is label 0, 1, 2 or 3."""
    return (5.0, 15.0, 25.0, 1500.0)[i % 4]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    pytest.importorskip("array_record", reason="array_record has no build for this platform")
    folder = tmp_path_factory.mktemp("tfds")
    tfds.builder("tiny_kitti", data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", VtabTask("tiny_kitti", 4, "validation[:5]", "test[2:]", label=kitti))


def test_prepared_data_is_read_in_file_order(data_dir):
    assert num_classes("tiny", "tfds", data_dir) == 4
    seen = {}
    for split, size in {"train800": 800, "val200": 5, "train800val200": 805, "test": 3}.items():
        images, labels = decode(open_split("tiny", "tfds", data_dir, split, (3, 5)), split)
        assert images.shape == (size, 3, 3, 5)
        assert (images == images[:, :, :1, :1]).all()
        numbers = images[:, 0, 0, 0].long() + 256 * images[:, 1, 0, 0].long()
        assert labels.tolist() == (numbers % 4).tolist()
        seen[split] = [(code, i) for code, i in zip(images[:, 2, 0, 0].tolist(), numbers.tolist(), strict=True)]
    builder = tfds.builder("tiny_kitti", data_dir=data_dir)
    for split, rows in {"train800": range(800), "val200": range(5), "test": range(2, 5)}.items():
        source = builder.as_data_source(split={"train800": "train", "val200": "validation"}.get(split, split))
        colours = [source[i]["image"][0, 0].tolist() for i in rows]
        assert seen[split] == [(code, low + 256 * high) for low, high, code in colours]
    assert seen["train800val200"] == seen["train800"] + seen["val200"]


def test_a_label_beyond_the_task_s_classes_is_refused(data_dir, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", VtabTask("tiny_kitti", 3, "validation[:5]", label=kitti))
    with pytest.raises(UserError, match="has label 3, but there are 3 classes"):
        decode(open_split("tiny", "tfds", data_dir, "test", 4), "test")


def test_data_prepared_as_tfrecord_is_refused(data_dir, tmp_path):
    old, new = data_dir / "tiny_kitti" / "1.0.0", tmp_path / "tiny_kitti" / "1.0.0"
    new.mkdir(parents=True)
    for path in old.iterdir():
        content = path.read_bytes().replace(b'"array_record"', b'"tfrecord"')
        (new / path.name.replace("array_record", "tfrecord")).write_bytes(content)
    with pytest.raises(UserError, match=r"holds tiny_kitti as tfrecord, .* move it away"):
        open_split("tiny", "tfds", tmp_path, "test", 4)


@pytest.mark.parametrize(
    ("version", "note"),
    [
        ("1.*.*", "official VTAB-1k rows, tiny_kitti 1.0.0"),
        (None, "official VTAB-1k rows, tiny_kitti 1.0.0"),
        ("0.9.*", "rows of tiny_kitti 1.0.0; VTAB-1k's are of 0.9.*"),
    ],
)
def test_another_version_than_that_of_vtab_is_not_called_official(version, note, data_dir, monkeypatch):
    task = VtabTask("tiny_kitti", 4, "validation[:5]", "test[2:]", version=version, label=kitti)
    monkeypatch.setitem(TASKS, "tiny", task)
    assert open_split("tiny", "tfds", data_dir, "test", 4).note == note


@pytest.mark.parametrize("name", [task for task in TASKS if task != "oxford_iiit_pet"])
def test_the_version_of_task_adaptation_is_asked_for(name, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: asked.append(self) or True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", lambda self, split: [0])
    note = open_split(name, "tfds", tmp_path, "test", 4).note
    assert asked[0].version.match(TASKS[name].version)
    assert note == f"official VTAB-1k rows, {TASKS[name].builder} {asked[0].version}"


def test_a_version_that_the_package_has_no_more_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", lambda self, split: [0])
    note = open_split("oxford_iiit_pet", "tfds", tmp_path, "test", 4).note
    version = tfds.builder("oxford_iiit_pet", data_dir=tmp_path).version
    assert note == f"rows of oxford_iiit_pet {version}; VTAB-1k's are of 3.*.*"


def test_preparing_writes_what_is_read_and_does_so_once(tmp_path, monkeypatch):
    pytest.importorskip("array_record", reason="array_record has no build for this platform")
    with pytest.raises(UserError, match=r"prepare it once by `capaboost prepare-vtab tiny_kitti --data-dir"):
        open_split("tiny", "tfds", tmp_path, "test", 4)
    assert prepare(TASKS["tiny"], tmp_path) == f"{tmp_path}/tiny_kitti/1.0.0 (official VTAB-1k rows, tiny_kitti 1.0.0)"
    assert len(open_split("tiny", "tfds", tmp_path, "test", 4)) == 3
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda self: pytest.fail("it downloads"))
    prepare(TASKS["tiny"], tmp_path)


FAILURES = {
    "package": (ImportError("No module named 'cv2'"), r"preparing cifar100 needs a package \(No module named 'cv2'\)"),
    "by hand": (
        AssertionError("Manual directory /m/manual does not exist or is empty. Instructions:\nGo to\n  kaggle.com"),
        "cifar100 must be downloaded by hand; Manual directory /m/manual .* Go to kaggle.com$",
    ),
    "network": (ConnectionError("no route\nto /manual/host"), r"could not be prepared \(no route to /manual/host\)"),
    "nameless": (ConnectionError(), r"could not be prepared \(ConnectionError\); go online, or pass --data-dir"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_cannot_be_prepared_says_what_is_lacking(case, tmp_path, monkeypatch):
    error, message = FAILURES[case]

    def fail(self):
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=message) as caught:
        prepare(TASKS["cifar"], tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("name", ["cifar", "resisc45", "kitti"])
def test_training_downloads_nothing_and_logs_nothing(name, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda self: pytest.fail("it downloads"))
    with pytest.raises(UserError, match=f"`capaboost prepare-vtab {TASKS[name].builder} --data-dir {tmp_path}`"):
        open_split(name, "tfds", tmp_path, "test", 4)
    assert not caplog.messages


@pytest.mark.hard_case("messages")
def test_offline_nothing_is_tried_twice(tmp_path, monkeypatch):
    tried = []

    def refuse(*address, **_):
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("tensorflow_datasets.core.download.downloader.MAX_RETRIES", 10)
    with pytest.raises(UserError, match=r"cifar100 is not in .* go online, or pass --data-dir"):
        prepare(TASKS["cifar"], tmp_path)
    assert 2 <= len(tried) <= 4
