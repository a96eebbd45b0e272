"""1, 2 and 4 processes train to the same values within rounding, whole or sharded, also where batches are uneven."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from capaboost_core import load_adapter, save_adapter
from tests.commands import finish, ranks
from tests.core.toy_model import X, adapted, fresh_base
from tests.core.toy_run import lines, run
from tests.hard.fsdp_run import ROWS, train

CLOSE = dict(rtol=0, atol=1e-5)
LONG = {"shared": [2, 4], "sharded": [1, 2]}  # how many processes
SHORT = {"shared": [4], "sharded": [2]}  # tests/core holds that two share as one would


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    counts = LONG if metafunc.config.getoption("--hard") else SHORT
    for name in counts.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, counts[name])


@pytest.fixture
def one(tmp_path, monkeypatch):
    """The weights and the losses of one process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    network, _ = run(tmp_path / "one")
    yield dict(network.named_parameters()), losses(tmp_path / "one")
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder)]


def test_processes_share_uneven_batches_as_one_would(one, tmp_path, shared):
    """23 rows in batches of 5, in two slices each: of the last batch of 3 some of four processes get nothing."""
    finish(ranks(shared, "-m", "tests.core.toy_run", str(tmp_path / "run")))
    assert losses(tmp_path / "run") == pytest.approx(one[1], abs=1e-5)
    trained = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["parameters"]
    for name, value in trained.items():
        torch.testing.assert_close(value, one[0][name].detach(), **CLOSE)


def test_a_sharded_model_trains_saves_and_loads_the_adapter_of_one_process(tmp_path, sharded):
    finish(ranks(sharded, "-m", "tests.hard.fsdp_run", str(tmp_path)))
    alone = train(adapted(), X[:ROWS])
    loaded = load_adapter(fresh_base(), tmp_path / "saved")
    compare(loaded, alone)
    save_adapter(alone, tmp_path / "alone")
    compare(
        load_adapter(fresh_base(), tmp_path / "again"), train(load_adapter(fresh_base(), tmp_path / "alone"), X[:ROWS])
    )


def compare(model, other) -> None:
    for (name, value), (_, wanted) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(value, wanted, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
