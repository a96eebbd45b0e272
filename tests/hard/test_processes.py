"""1, 2 and 4 processes train to the same values within rounding, whole or sharded, also where batches are uneven."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from capaboost_core import load_adapter, save_adapter
from capaboost_core.adapter_files.disk import WEIGHTS
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


FSDP2 = dict(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_CPU_RAM_EFFICIENT_LOADING="true")
FSDP2 |= dict(FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_TRANSFORMER_CLS_TO_WRAP="Block")
TRAINED = ("capaboost-lora-vit", "capaboost-unipelt-vit", "full-vit", "dora-vit")
REFUSED = {  # what needs the model as a whole between steps, what several blocks share, and blocks of another class
    "adalora-vit": "adalora needs the whole model in its penalty; train it without FSDP2",
    "propetl-lora-vit": "mixed torch.Tensor and DTensor.*train it without FSDP2",
    "vpt-deep-vit": "Could not find the transformer layer class Block.*set fsdp_transformer_layer_cls_to_wrap",
}


@pytest.mark.long
def test_the_training_loop_under_fsdp2_trains_resumes_and_saves_as_data_parallelism(tmp_path):
    """Each case is cut off in its second epoch and goes on; processes evaluate unequal numbers of batches."""
    finish(ranks(2, "-m", "tests.hard.sharded_run", str(tmp_path / "ddp"), *TRAINED))
    finish(ranks(2, "-m", "tests.hard.sharded_run", str(tmp_path / "fsdp2"), *TRAINED, *REFUSED, **FSDP2))
    for case in TRAINED:
        assert (tmp_path / "fsdp2" / case / "sharded").exists()
        whole, sharded = (tmp_path / engine / case for engine in ("ddp", "fsdp2"))
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            expected, found = (torch.load(folder / name, weights_only=True) for folder in (whole, sharded))
            for part in ("parameters", "stepper"):
                torch.testing.assert_close(found[part], expected[part], **CLOSE)
        expected, found = (load_file(folder / "adapter" / WEIGHTS) for folder in (whole, sharded))
        torch.testing.assert_close(found, expected, **CLOSE)
    for case, line in REFUSED.items():
        assert re.search(line, (tmp_path / "fsdp2" / case / "refused.txt").read_text())
        assert not (tmp_path / "fsdp2" / case / "checkpoint.pt").exists()


def compare(model, other) -> None:
    for (name, value), (_, wanted) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(value, wanted, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
