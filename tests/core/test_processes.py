"""Processes: those that do not form one run are refused, and one of those that fail tells it."""

import os
import sys

import pytest
from accelerate import Accelerator

from capaboost.command_line import exit_code
from capaboost.training.optimize import make_accelerator
from capaboost.training.processes import check_launch, wait_policy
from capaboost_core import UserError
from tests.commands import torchrun
from tests.core.toy_run import settings


@pytest.mark.hard_case(21)
@pytest.mark.parametrize("engine", [None, pytest.param("FSDP", marks=pytest.mark.long)])
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


PASSIVE = {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize(
    ("load", "environment", "side_by_side", "policy"),
    [
        (0.1, {}, False, {}),  # an idle machine
        (1.0, {}, False, PASSIVE),  # one of its cores is busy
        (1.0, {"OMP_NUM_THREADS": "1"}, False, {}),  # but this process wants the other one only
        (2.0, {"OMP_NUM_THREADS": "1"}, False, PASSIVE),
        (1.0, {"OMP_NUM_THREADS": "2,1"}, False, PASSIVE),
        (0.1, {}, True, PASSIVE),
        (9.0, {"OMP_WAIT_POLICY": "active"}, True, {}),  # the user's choice stands
        (9.0, {"GOMP_SPINCOUNT": "10"}, True, {}),
        (9.0, {"KMP_BLOCKTIME": "0"}, False, {}),
    ],
)
def test_idle_threads_sleep_where_cores_are_shared(load, environment, side_by_side, policy, monkeypatch):
    """On two cores."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert wait_policy(side_by_side) == policy


def test_a_command_chooses_before_torch_is_imported(monkeypatch):
    """torch reads it once: after that nothing is set."""
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    seen = []
    exit_code(lambda: seen.append(dict(os.environ)))
    monkeypatch.delitem(sys.modules, "torch")
    exit_code(lambda: seen.append(dict(os.environ)))
    assert seen == [{}, PASSIVE]
