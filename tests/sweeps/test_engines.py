"""Every engine ends with the same results, bit by bit, whatever is killed on the way."""

import contextlib
import json
import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch

from capaboost.commands import sweep as command
from capaboost.sweeps.engines.local import local_engine
from capaboost.sweeps.folder import CLAIMS
from tests import commands
from tests.commands import Command, finish
from tests.sweeps.case import FAST, outcome, start, sweep_file, write_file

SHORT = dict(methods=["linear", "lora"], seeds=[1], set={**FAST, "train.epochs": 2})
LONG = dict(
    methods=["linear", "lora", "capaboost-lora"], seeds=[1, 2, 3, 4], set={**FAST, "train.epochs": 3},
    tune={"grid": {"train.lr": [1e-3, 5e-3, 2e-2, 8e-2]}, "widen": 0},
)  # fmt: skip
KILLS = {True: 5, False: 2}


SMALL, LARGE = {"model.name": "test_vit"}, {"model.name": "vit_base_patch16_224"}


@pytest.mark.parametrize(
    ("models", "flag", "variable", "gpus", "threads"),
    [
        ([SMALL], None, None, None, 1),
        ([SMALL, LARGE], None, None, None, 4),  # of eight cores for two workers
        ([{"model.name": "x/unknown"}], None, None, None, 4),
        ([SMALL], None, None, ("0", "1"), 4),  # they prepare what the GPUs compute
        ([LARGE], None, "3", None, 3),
        ([LARGE], None, "3,1", None, 4),  # of nested levels: not a number of threads
        ([SMALL], 2, "3", None, 2),
    ],
)
def test_a_worker_has_the_threads_that_were_asked_for_or_suit_its_model(
    models, flag, variable, gpus, threads, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    tasks = {str(i): {"task": "digits", **model} for i, model in enumerate(models)}
    sweep = sweep_file(tasks=tasks, set={"model.pretrained": False})
    assert local_engine(sweep, 2, flag, gpus).threads == threads


@pytest.fixture(scope="module")
def file(tmp_path_factory, is_hard) -> Path:
    return write_file(tmp_path_factory.mktemp("sweep") / "sweep.yaml", **(LONG if is_hard else SHORT))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, file) -> Path:
    """An undisturbed sweep by one worker."""
    folder = tmp_path_factory.mktemp("whole")
    lines = ended(start(file, folder, "--threads", "1")).splitlines()
    assert lines[-1].startswith(f"results: {folder}")
    return folder


def ended(process: Command) -> str:
    return finish(process, 3000)  # of 24 runs


def same(folder: Path, whole: Path, is_hard: bool) -> None:
    found, expected = outcome(folder), outcome(whole)
    assert len(expected) == (24 if is_hard else 2)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name
    assert not list(folder.rglob("failed.json"))


def kill_all(folder: Path, process: Command) -> None:
    """SIGKILL to the sweep, and to every worker that trains; the others see that it is gone."""
    process.kill()
    process.wait()
    for path in (folder / CLAIMS).rglob("*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)


def test_killed_at_random_moments_it_goes_on_to_the_same_results(file, whole, tmp_path, is_hard):
    moments = random.Random(0)
    for _ in range(KILLS[is_hard]):
        process = start(file, tmp_path, "--threads", "1", "--workers", "2")
        begun, results = time.monotonic(), len(list(tmp_path.rglob("metrics.jsonl")))
        while process.poll() is None and len(list(tmp_path.rglob("metrics.jsonl"))) <= results:
            assert time.monotonic() - begun < 300, "nothing was trained"
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 3 if is_hard else 0.5))
        kill_all(tmp_path, process)
    ended(start(file, tmp_path, "--threads", "1", "--workers", "2"))
    same(tmp_path, whole, is_hard)


def test_ctrl_c_saves_and_the_same_command_goes_on(file, whole, tmp_path, is_hard):
    process = start(file, tmp_path, "--threads", "1")
    while not list(tmp_path.rglob("metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "stopped; the same command goes on"
    ended(start(file, tmp_path, "--threads", "1"))
    same(tmp_path, whole, is_hard)


def test_two_sweeps_on_one_folder_share_the_runs(file, whole, tmp_path, is_hard):
    for process in [start(file, tmp_path, "--threads", "1") for _ in range(2)]:
        ended(process)
    same(tmp_path, whole, is_hard)
    for log in tmp_path.rglob("log.txt"):  # each run was begun once
        assert log.read_text().count("$ capaboost") == 1, log


@pytest.mark.long
def test_ray_goes_on_when_a_node_dies(file, whole, tmp_path, is_hard):
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        process = start(file, tmp_path, "--engine", "ray", "--threads", "1", "--ray-address", cluster.address)
        begun = time.monotonic()
        while len(list(tmp_path.rglob("metrics.jsonl"))) < 2:  # both nodes are at work
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() - begun < 300
            time.sleep(0.05)
        cluster.remove_node(doomed, allow_graceful=False)
        ended(process)
    finally:
        cluster.shutdown()
    same(tmp_path, whole, is_hard)


@pytest.mark.long
def test_slurm_jobs_by_submitits_local_executor(file, whole, tmp_path, is_hard):
    pytest.importorskip("submitit", reason="submitit is not installed")
    engine = ["--engine", "slurm", "--slurm", "cluster=local", "--slurm", "timeout_min=10"]
    ended(start(file, tmp_path, "--threads", "1", *engine))
    assert list((tmp_path / "slurm").glob("*_log.out"))
    same(tmp_path, whole, is_hard)


def test_a_run_of_a_sweep_is_the_run_of_its_command(whole, tmp_path):
    (place,) = whole.rglob("lora/seed1")
    result = json.loads((place / "result.json").read_text())
    name, command_name, *flags = shlex.split(result["command"])
    assert (name, command_name) == ("capaboost", "train-vtab")
    flags[flags.index("--output-dir") + 1] = str(tmp_path / "alone")
    finish(commands.start("tools/train_vtab.py", *flags))
    alone = json.loads((tmp_path / "alone" / "result.json").read_text())
    assert [alone[key] for key in ("value", "metrics")] == [result[key] for key in ("value", "metrics")]


def test_a_failed_run_is_recorded_and_does_not_stop_the_rest(tmp_path, capsys):
    """A folder of images that is not there, before digits."""
    tasks = {"lost": {"data.source": "folder", "data.dir": str(tmp_path)}, "digits": {}}
    values = {**FAST, "train.epochs": 1}
    file = write_file(tmp_path / "sweep.yaml", tasks=tasks, methods=["linear"], seeds=[1], set=values)
    folder = tmp_path / "out"
    process = start(file, folder, "--threads", "1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    failed = json.loads((folder / "lost" / "linear" / "seed1" / "failed.json").read_text())
    assert failed["kind"] == "error"
    assert failed["command"].startswith("capaboost train-vtab --dataset lost")
    assert err.splitlines()[-1].startswith("error: 1 of 2 runs failed, first lost/linear/seed1: ")
    assert failed["error"] in err
    assert (folder / "digits" / "linear" / "seed1" / "result.json").exists()
    assert "failed: " in out


def test_another_setting_in_a_folder_with_results_is_refused(file, whole, tmp_path, capsys):
    values = json.loads(file.read_text())
    values["set"]["train.epochs"] = 4
    (tmp_path / "other.yaml").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    before = outcome(whole)
    assert command.main([str(tmp_path / "other.yaml"), "--output-dir", str(whole)]) == 2
    assert "was run with other settings (train.epochs: " in capsys.readouterr().err
    assert outcome(whole) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_several_runs_share_a_gpu(file, tmp_path, is_hard):
    ended(start(file, tmp_path, "--workers", "2", "--gpus", "0"))
    assert len(outcome(tmp_path)) == (24 if is_hard else 2)
