"""Processes: those that do not form one run are refused, and one of those that fail tells it."""

import pytest
from accelerate import Accelerator

from capaboost_core import UserError
from capaboost_core.training.optimize import make_accelerator
from capaboost_core.training.processes import check_launch
from tests.commands import torchrun
from tests.core.toy_run import settings


@pytest.mark.hard_case(21)
@pytest.mark.parametrize("engine", [None, "FSDP"])
def test_unlinked_processes_are_refused_before_anything_is_written(tmp_path, engine):
    more = {"ACCELERATE_USE_CPU": None} | ({f"ACCELERATE_USE_{engine}": "true", "FSDP_VERSION": "2"} if engine else {})
    process = torchrun("-m", "tests.core.toy_run", str(tmp_path / "run"), **more, CUDA_VISIBLE_DEVICES="")
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert told == [told[0]]
    assert "2 processes were started, but accelerate sees 1" in told[0]
    assert err.count("exitcode  : 2") == 2 or err.count("exitcode  : -15") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.hard_case(21, "messages")
@pytest.mark.parametrize(("name", "said"), [("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")])
def test_engines_that_shard_the_model_are_refused(tmp_path, monkeypatch, name, said):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=f"do not run under {said}; use plain data parallelism"):
        make_accelerator(settings(), tmp_path)


def test_one_process_under_a_launcher_is_right(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_launch(Accelerator())
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes were started, but accelerate sees 1"):
        check_launch(Accelerator())
