"""Runs on digits that die at random moments, within the writing of files too, end in the same tensors.

CAPABOOST_KILLS sets how many runs are killed; each is killed up to twice.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import commands
from tests.commands import finish

KILLS = int(os.environ.get("CAPABOOST_KILLS", "3"))
RUN = ["--model", "test_vit", "--set", "model.pretrained=false", "--set", "adapter.dropout=0.1", "--dataset", "digits"]
RUN += ["--source", "digits", "--epochs", "4", "--batch-size", "250", "--protocol", "select"]
PLACES = ("replace-before", "replace-after", "fsync-before", "fsync-after", "open-after")


def command(folder: Path, *more: str) -> list[str]:
    return ["tools/train_vtab.py", *RUN, "--output-dir", str(folder), *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    finish(commands.start(*command(folder)))
    return load_file(folder / "adapter" / "adapter.safetensors")


def die(folder: Path, chance: random.Random) -> int:
    """Start or go on with the run, and kill it: at a moment after its first file, or within a write."""
    if chance.random() < 0.7:
        at = ["-m", "tests.killed", chance.choice(PLACES), str(chance.randint(1, 12))]
        process = commands.start(*at, *command(folder, "--resume"))
    else:
        process = commands.start(*command(folder, "--resume"))
        while process.poll() is None and not (folder / "run.lock").exists():
            time.sleep(0.02)
        time.sleep(4 * chance.random())
        process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=400)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode


@pytest.mark.hard_case(4, 8, 25)
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_run_that_dies_ends_in_the_same_tensors(whole, tmp_path, seed):
    chance = random.Random(seed)
    ends = [die(tmp_path / "run", chance) for _ in range(2)]
    finish(commands.start(*command(tmp_path / "run", "--resume")))
    resumed = load_file(tmp_path / "run" / "adapter" / "adapter.safetensors")
    assert set(ends) <= {0, -signal.SIGKILL}
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "run" / "run.lock").exists()
