"""Processes: those that do not form one run are refused, and one of those that fail tells it."""

import json
import os
import subprocess
import sys

import pytest
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file

from capaboost.command_line import exit_code
from capaboost.training.optimize import make_accelerator
from capaboost.training.processes import check_launch, on_device, wait_policy
from capaboost_core import UserError
from tests.commands import ROOT, torchrun
from tests.core.toy_run import settings


@pytest.mark.hard_case(21)
@pytest.mark.parametrize("engine", [None, pytest.param("FSDP", marks=pytest.mark.long)])
def test_unlinked_processes_are_refused_before_anything_is_written(tmp_path, engine):
    more = {"ACCELERATE_USE_CPU": "false"} | (
        {f"ACCELERATE_USE_{engine}": "true", "FSDP_VERSION": "2"} if engine else {}
    )
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


@pytest.mark.parametrize(
    ("asked", "precision", "said"),
    [
        ({}, "no", "FSDP's first version hides the parameters; pass --fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "no", "set fsdp_offload_params to false"),
        ({"FSDP_VERSION": "2"}, "fp16", "fp16 is not trained under FSDP2; pass --mixed-precision bf16 or no"),
    ],
)
def test_forms_of_fsdp_that_do_not_train_are_refused_before_anything_starts(
    tmp_path, monkeypatch, asked, precision, said
):
    for name, value in {"ACCELERATE_USE_FSDP": "true", **asked}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        make_accelerator(settings(mixed_precision=precision), tmp_path)


@pytest.mark.parametrize(
    ("environment", "is_told"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            True,
        ),  # accelerate launch --cpu --num_processes 2
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False),  # accelerate launch of one process
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "1"},
            False,
        ),  # its other launcher
        ({"MASTER_ADDR": "127.0.0.1"}, False),  # no launcher
    ],
)
def test_one_process_where_several_were_asked_for_is_told_so(monkeypatch, capsys, environment, is_told):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    accelerator = Accelerator()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launch(accelerator)
    assert ("started one; on CPUs type torchrun --nproc_per_node 2" in capsys.readouterr().err) == is_told


@pytest.mark.long
@pytest.mark.parametrize("engine", ["cpu2", "fsdp2-cpu2"])
def test_the_launch_files_of_cpus_start_two_processes(tmp_path, engine):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"configs/accelerate/{engine}.yaml",
    ]
    command += ["--main_process_port", "0", "tools/train_vtab.py", "--dataset", "digits", "--method", "capaboost-lora"]
    command += ["--epochs", "1", "--protocol", "select", "--set", "train.test=false", "--mixed-precision", "no"]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    command += ["--output-dir", str(tmp_path / "run")]
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["processes"] == 2
    assert result["value"] > 20  # of ten classes


def test_a_launch_file_asks_for_what_accelerate_knows():
    """Those of GPUs are read as the launcher reads them; they have not run here."""
    for path in (ROOT / "configs" / "accelerate").glob("*.yaml"):
        load_config_from_file(str(path))  # raises for an unknown key


def test_one_process_under_a_launcher_is_right(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_launch(Accelerator())
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes were started, but accelerate sees 1"):
        check_launch(Accelerator())


def chosen() -> dict[str, str]:
    names = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE")
    return {name: os.environ[name] for name in names if name in os.environ}


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        (None, {"ACCELERATE_USE_CPU": "user's"}),
        ("cpu", {"ACCELERATE_USE_CPU": "true"}),
        ("mps", {"ACCELERATE_USE_CPU": "false", "ACCELERATE_TORCH_DEVICE": "mps"}),
        ("cuda:1", {"ACCELERATE_USE_CPU": "false", "ACCELERATE_TORCH_DEVICE": "cuda:1"}),
    ],
)
def test_a_named_device_is_accelerates_for_the_runs_within(monkeypatch, name, inside):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "user's")
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    monkeypatch.setattr("torch.empty", lambda *_, device: None)  # a machine that has them all
    made = []
    monkeypatch.setattr("torch.accelerator.set_device_index", made.append)
    with on_device(name):
        assert chosen() == inside
    assert chosen() == {"ACCELERATE_USE_CPU": "user's"}
    assert made == ([1] if name == "cuda:1" else [])


def test_processes_do_not_share_one_named_device(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.empty", lambda *_, device: None)
    with pytest.raises(UserError, match="--device cuda:0 is one device for several processes; leave it out"):
        on_device("cuda:0").__enter__()


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
