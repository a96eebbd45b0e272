"""Augmented training images: timm's transforms, drawn by (seed, epoch, row); what is evaluated stays."""

import random

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform

from capaboost.commands import train_vtab
from capaboost.runs.settings import VtabRun
from capaboost.runs.vtab import prepare
from capaboost.training.experiment import run_experiment
from capaboost.training.settings import build_run
from capaboost_core import UserError
from capaboost_vision.vtab.augment import Augment, decode_whole
from capaboost_vision.vtab.sources import open_split

SIZES = ((40, 64), (64, 40), (200, 90))  # (height, width); the model reads 32 x 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        for i in range(6):
            coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
            (folder / name).mkdir(exist_ok=True)
            height, width = SIZES[i % 3]
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / name / f"{i}.png")
    return folder


def make(photos, augment="rand-m9-mstd0.5-inc1", **train) -> VtabRun:
    sections = {
        "model": {"name": "test_vit", "pretrained": False, "img_size": 32},
        "data": {"dataset": "photos", "source": "images", "dir": str(photos), "augment": augment},
        "train": {"epochs": 3, "batch_size": 4, "mixed_precision": "no", **train},
        "adapter": {"method": "lora", "dropout": 0.1},
    }
    return build_run(VtabRun, sections)


def task_of(photos, *settings, **train):
    return prepare(make(photos, *settings, **train), Accelerator(cpu=True)).task


def streams() -> list:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_an_image_depends_on_seed_epoch_and_row_alone(photos):
    task, again, other = task_of(photos), task_of(photos), task_of(photos, seed=1)
    first, second = (torch.cat(task.batches(epoch)) for epoch in (0, 1))
    before = streams()
    images, labels = task.rows(first)
    assert streams() == before
    random.random(), np.random.rand(), torch.rand(1)
    assert torch.equal(torch.cat([again.rows(part)[0] for part in first.split(3)]), images)
    assert torch.equal(labels, task.labels[first])
    row_of = {int(number) % task.examples: i for i, number in enumerate(second)}
    later = task.rows(second)[0][[row_of[int(number)] for number in first]]
    assert not (later == images).flatten(1).all(1).any()  # no image twice alike
    assert not torch.equal(other.rows(first)[0], images)
    assert sorted(first.tolist()) == list(range(task.examples))


def test_the_transform_is_timm_s(photos):
    task = task_of(photos)
    policy = {"auto_augment": "rand-m9-mstd0.5-inc1", "mean": task.normalize.mean, "interpolation": "bicubic"}
    theirs = create_transform((3, 32, 32), is_training=True, use_prefetcher=True, color_jitter=None, **policy)
    for number in (0, 7, 25):
        a, b, c = np.random.SeedSequence((0, number)).generate_state(3)
        random.seed(int(a)), np.random.seed(b), torch.manual_seed(int(c))
        expected = theirs(Image.fromarray(task.originals[number % task.examples]))
        assert torch.equal(task.rows(torch.tensor([number]))[0][0], expected)


def test_what_is_evaluated_and_recorded_for_use_does_not_change(photos):
    setups = [prepare(make(photos, kind), Accelerator(cpu=True)) for kind in (None, "basic")]
    plain, augmented = (setup.task for setup in setups)
    model = setups[0].model.eval()
    assert plain.evaluate(model) == augmented.evaluate(model)
    assert plain.test(model) == augmented.test(model)
    assert setups[0].inference == setups[1].inference
    assert len(augmented.fingerprint()) == 12


def test_images_keep_their_shape_and_large_ones_are_reduced(photos):
    images, labels = decode_whole(open_split("photos", "images", photos, "train800val200", 32), "train")
    assert {image.shape for image in images} == {(40, 64, 3), (64, 40, 3), (142, 64, 3)}
    assert labels.tolist() == sorted(labels.tolist())


def test_a_resumed_run_ends_in_the_same_weights(photos, tmp_path):
    run = make(photos)
    run_experiment(run, tmp_path / "whole", False, prepare)

    def stopping(*arguments):
        setup, calls = prepare(*arguments), iter(range(5))  # a trial, three steps of the first epoch, one of the next

        def loss(model, batch):
            if next(calls, None) is None:
                raise InterruptedError
            return type(setup.task).loss(setup.task, model, batch)

        setup.task.loss = loss
        return setup

    with pytest.raises(InterruptedError):
        run_experiment(run, tmp_path / "cut", False, stopping)
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 1
    run_experiment(run, tmp_path / "cut", True, prepare)
    whole, resumed = (load_file(tmp_path / name / "adapter" / "adapter.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


POLICIES = ("basic", "rand-m9-mstd0.5-inc1", "rand-m9-tweights", "augmix-m5-w4-d2", "original-mstd0.5", "v0r", "3a")
WRONG = {
    "strong": "data.augment is 'strong'; type basic, or a policy of timm's, such as rand-m9-mstd0.5-inc1",
    "rand-m": "data.augment is 'rand-m'; type basic",
    "rand-q9": "data.augment: timm does not read 'rand-q9'",
}


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_of_timm_give_bytes_of_the_input_s_size(policy):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    made = Augment(policy, (8, 12), (0.5, 0.5, 0.5))([image] * 2, [(0, 1), (0, 2)])
    assert (made.shape, made.dtype) == ((2, 3, 8, 12), torch.uint8)


@pytest.mark.parametrize("policy", WRONG)
def test_a_policy_that_timm_would_misread_is_one_line(policy, photos):
    with pytest.raises(UserError) as caught:
        task_of(photos, policy)
    assert str(caught.value).startswith(WRONG[policy])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("flags", "value"), [([], None), (["--augment"], "basic"), (["--augment", "v0"], "v0")])
def test_the_flag_is_a_setting_that_is_recorded(flags, value, capsys):
    assert train_vtab.main(["--dataset", "dtd", *flags, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["augment"] == value
