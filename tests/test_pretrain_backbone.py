"""The pretraining of the embedded backbone: resumable to the bit; a mistake is one line before anything is written."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import timm
import torch
from PIL import Image

from tests.commands import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import pretrain_backbone
from pretrain_backbone import CHECKPOINT, METRICS, WEIGHTS, Pretraining, augment, load_split, mix

SMALL = ["--batch-size", "4", "--epochs", "2", "--patch-drop", "0.75"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("train-0", "val"):
        parquet.write_table(
            pyarrow.table({"image": [png(i) for i in range(4)], "label": [0, 1, 2, 1]}), folder / f"{name}.parquet"
        )
    return folder


def png(seed: int, size: int = 64) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(values).save(file, "png")
    return file.getvalue()


def pretrain(data: Path, out: Path, *flags: str) -> int:
    return pretrain_backbone.main(["--data-dir", str(data), "--output-dir", str(out), *SMALL, *flags])


def records(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(images, tmp_path, monkeypatch, capsys):
    fused = timm.layers.use_fused_attn()
    assert pretrain(images, tmp_path / "whole") == 0
    assert timm.layers.use_fused_attn() == fused  # timm's setting of the process is others' too

    whole_epoch = Pretraining.train_epoch

    def stopped_in_second(run, *data):
        if run.epoch == 1:
            raise KeyboardInterrupt
        return whole_epoch(run, *data)

    with monkeypatch.context() as stopping:
        stopping.setattr(Pretraining, "train_epoch", stopped_in_second)
        assert pretrain(images, tmp_path / "stopped") == 130
    assert len(records(tmp_path / "stopped")) == 1
    assert pretrain(images, tmp_path / "stopped", "--lr", "0.1") == 2
    assert "lr: 0.002 there, 0.1 here" in capsys.readouterr().err
    assert pretrain(images, tmp_path / "stopped") == 0

    assert records(tmp_path / "stopped") == records(tmp_path / "whole")
    weights = [(tmp_path / run / WEIGHTS).read_bytes() for run in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "epochs is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--lr", "-1"], "lr is -1.0"),
        (["--lr", "nan"], "lr is nan"),
        (["--patch-drop", "1"], "patch_drop is 1.0"),
        (["--mixup", "-0.1"], "mixup is -0.1"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_a_wrong_number_is_one_line(images, tmp_path, flags, message, capsys):
    out = tmp_path / "out"
    assert pretrain(images, out, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


def test_a_batch_of_more_images_than_there_are_is_one_line(images, tmp_path, capsys):
    assert pretrain(images, tmp_path, "--batch-size", "5") == 2
    assert "type at most 4" in capsys.readouterr().err.splitlines()[-1]


def test_other_images_are_decoded_anew_and_refused_by_a_run_that_has_begun(images, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    assert pretrain(images, out, "--epochs", "1") == 0
    other.mkdir()
    for file in images.iterdir():
        table = pyarrow.table({"image": [png(i) for i in range(5, 10)], "label": [0, 1, 2, 1, 0]})
        parquet.write_table(table, other / file.name)
    assert pretrain(other, out) == 2
    assert "was run with other settings (data:" in capsys.readouterr().err.splitlines()[-1]
    (out / CHECKPOINT).write_bytes(b"half")
    assert pretrain(other, out) == 2
    assert "no checkpoint of this command" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "holds no train-*.parquet and val.parquet"),
        ({"picture": [b""], "label": [0]}, "with the columns image and label"),
        ({"image": [b"no image"], "label": [0]}, "cannot read"),
        ({"image": [png(0), png(1, 32)], "label": [0, 1]}, "images of several sizes"),
    ],
    ids=["missing", "other columns", "no image", "sizes"],
)
def test_images_that_cannot_be_used_are_one_line(tmp_path, table, message, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    if table:
        parquet.write_table(pyarrow.table(table), data / "train-0.parquet")
        parquet.write_table(pyarrow.table(table), data / "val.parquet")
    assert pretrain(data, out) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(out.glob("*"))


def without_sizes(data: bytes) -> bytes:
    file = io.BytesIO()
    arrays = np.load(io.BytesIO(data))
    np.savez(file, images=arrays["images"], labels=arrays["labels"])
    return file.getvalue()


@pytest.mark.parametrize(
    "damaged",
    [lambda data: b"", lambda data: b"half", lambda data: data[: len(data) // 2], without_sizes],
    ids=["empty", "other", "cut", "without sizes"],
)
def test_a_cache_that_cannot_be_used_is_made_anew(images, tmp_path, damaged):
    files, cache = [images / "train-0.parquet"], tmp_path / "train.npz"
    whole = load_split(files, cache)
    data = cache.read_bytes()
    cache.write_bytes(damaged(data))
    assert all(a.equal(b) for a, b in zip(load_split(files, cache), whole, strict=True))
    assert cache.read_bytes() == data


def test_augmented_images_are_crops_of_the_padded_image_or_its_mirror():
    image = torch.arange(3 * 5 * 5).view(1, 3, 5, 5).float()
    padded = [torch.nn.functional.pad(one, (2, 2, 2, 2), mode="reflect") for one in (image, image.flip(-1))]
    crops = {
        tuple(one[0, :, i : i + 5, j : j + 5].flatten().tolist()) for one in padded for i in range(5) for j in range(5)
    }
    torch.manual_seed(0)
    made = {tuple(one.flatten().tolist()) for one in augment(image.expand(400, -1, -1, -1), pad=2)}
    assert made <= crops
    assert len(made) > len(crops) / 2


def test_mixup_mixes_images_and_targets_by_one_share():
    images, targets = torch.rand(3, 2), torch.eye(3)
    np.random.seed(0)
    mixed, wanted = mix(images, targets, 1.0)
    share = wanted[0, 0]
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[[2, 0, 1]])
    assert mix(images, targets, 0)[0].equal(images)
