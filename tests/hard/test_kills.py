"""Vision and text runs that die three times each, at random, end in the same bits: 21 kills; by default one of one."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import commands
from tests.commands import finish
from tests.hard.counts import count
from tests.hard.kills import die

LONG = {"vision": range(4), "text": range(3)}  # the seeds of each kind of run
SHORT = {"vision": [5]}  # dies between the two renames of its second checkpoint
VISION = [
    "--model",
    "test_vit",
    "--set",
    "model.pretrained=false",
    "--set",
    "model.img_size=32",
    "--mixed-precision",
    "no",
    "--set",
    "adapter.dropout=0.1",
    "--dataset",
    "digits",
]
VISION += ["--source", "digits", "--batch-size", "250", "--protocol", "select"]
TEXT = ["--task", "cola", "--batch-size", "8", "--mixed-precision", "no", "--set", "adapter.r=2"]
TEXT += ["--set", "data.max_length=32", "--set", "adapter.dropout=0.1"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"kind", "seed"} <= set(metafunc.fixturenames):
        seeds = LONG if metafunc.config.getoption("--hard") else SHORT
        metafunc.parametrize(("kind", "seed"), [(kind, seed) for kind in seeds for seed in seeds[kind]])


@pytest.fixture(scope="module")
def command_of(request, is_hard):
    """The command of a kind of run, without its folder."""
    epochs = ["--epochs", "4" if is_hard else "2"]

    def command(kind: str) -> list[str]:
        if kind == "vision":
            return ["tools/train_vtab.py", *VISION, *epochs]
        texts = request.getfixturevalue("place")
        return ["tools/train_glue.py", *TEXT, *epochs, "--model", str(texts / "encoder"), "--data-dir", str(texts)]

    return command


@pytest.fixture(scope="module")
def whole_of(command_of, tmp_path_factory):
    """The folder of a run of a kind that nobody killed."""

    @cache
    def whole(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("whole") / kind
        finish(commands.start(*command_of(kind), "--output-dir", str(folder)))
        return folder

    return whole


def results(folder: Path) -> tuple:
    """What a run comes to, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{name: value for name, value in line.items() if "second" not in name} for line in lines]
    result = json.loads((folder / "result.json").read_text())
    return timeless, result["value"], result["test_metrics"], result["selected_epoch"]


@pytest.mark.hard_case(4, 8, 25)
def test_a_run_that_dies_three_times_ends_in_the_same_bits(whole_of, command_of, is_hard, tmp_path, kind, seed):
    whole, chance, folder = whole_of(kind), random.Random(f"{kind}{seed}"), tmp_path / "run"
    kills = 0
    while kills < (3 if is_hard else 1):
        if die(folder, chance, command_of(kind)):
            kills += 1
            count("killed")
        else:
            shutil.rmtree(folder)  # it ended first: there is nothing left to kill
    finish(commands.start(*command_of(kind), "--output-dir", str(folder), "--resume"))
    first, second = (load_file(run / "adapter" / "adapter.safetensors") for run in (whole, folder))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert results(whole) == results(folder)
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert not list(folder.rglob("*.partial"))
    count("resumed to the same bits")
