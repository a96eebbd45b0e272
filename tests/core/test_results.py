"""Result files hold the run's outcome and its surroundings."""

import json
import shlex

import pytest
import torch
from torch import nn

from capaboost.training.result import (
    Result,
    adapter_bytes,
    command_line,
    counts_of,
    device_name,
    git_state,
    library_versions,
    print_table,
    read_result,
    write_result,
)
from capaboost_core import CapaBoostConfig, UserError, inject, save_adapter


def result(**changes) -> Result:
    values = dict(
        task="digits",
        method="lora",
        model="tiny",
        seed=0,
        protocol="test",
        metric="accuracy",
        value=91.25,
        trainable_parameters=1234,
        head_parameters=10,
        total_parameters=100000,
        percent_trainable=1.234,
        epochs=2,
        selected_epoch=2,
        selected_by=None,
        metrics={"loss": 0.5},
        test_metrics={"accuracy": 91.25},
        unit="images",
        examples_per_second=50.0,
        wall_seconds=3.5,
        adapter_file_bytes=5000,
        split_note="rows",
        processes=1,
        device=device_name(torch.device("cpu")),
        config={"train": {"lr": 0.001}},
    )
    return Result(**values | changes)


def test_a_written_result_reads_back_with_versions_and_git_state(tmp_path):
    path = write_result(tmp_path / "run", result().to_dict())
    read = read_result(path)
    assert read["images_per_second"] == 50.0
    assert "unit" not in read
    assert read["versions"]["torch"] == torch.__version__.split("+")[0]
    assert set(read["git"]) == {"commit", "dirty"}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
    assert json.loads(path.read_text()) == read


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_result(tmp_path, result().to_dict())
    with pytest.raises(TypeError):
        write_result(tmp_path, result(config={"train": object()}).to_dict())
    assert read_result(path)["value"] == 91.25


def test_an_unreadable_result_is_one_line(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="run its task again"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (CapaBoostConfig(), "capaboost-lora"),
        (CapaBoostConfig("padapter", num_tied=1, density=1.0), "padapter"),
        (CapaBoostConfig(num_tied=1, density=0.5), "capaboost-lora"),
        (CapaBoostConfig("linear"), "linear"),
    ],
)
def test_methods_have_their_presets_names(config, name):
    assert config.label == name


def test_counts_leave_the_head_out(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    inject(model, CapaBoostConfig(r=2, num_tied=1, density=1.0, targets=("0",)))
    assert counts_of(model) == {
        "trainable_parameters": 2 * (4 + 8),
        "head_parameters": 0,
        "total_parameters": 4 * 8 + 8 + 8 * 2 + 2,
        "percent_trainable": 100 * 24 / 58,
    }
    assert adapter_bytes(save_adapter(model, tmp_path)) > 4 * 24


def test_outside_git_and_without_a_library_there_is_null(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() == {"commit": None, "dirty": None}
    monkeypatch.setattr("capaboost.training.result.LIBRARIES", ("no-such-library",))
    assert library_versions()["no-such-library"] is None


def test_the_table_shows_the_value(capsys):
    print_table([result().to_dict()])
    assert "accuracy 91.25" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        ("/home/me/venv/bin/capaboost flops --methods 'a b'", "capaboost flops --methods 'a b'"),
        ("tools/train_vtab.py --dataset dtd", "tools/train_vtab.py --dataset dtd"),
    ],
)
def test_a_result_names_the_command_without_the_folder_of_the_environment(typed, recorded, monkeypatch):
    monkeypatch.setattr("sys.argv", shlex.split(typed))
    assert command_line() == recorded
