"""The training command: a run on digits, killed and resumed, and its answers to wrong input."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from capaboost.commands import train_vtab
from capaboost_core.methods import METHODS, PRESETS
from tests import commands
from tests.commands import ROOT, Command, finish

TINY = ["--model", "test_vit", "--set", "model.pretrained=false", "--set", "model.drop_path_rate=0.2"]
RUN = [*TINY, "--dataset", "digits", "--source", "digits", "--epochs", "4", "--set", "adapter.dropout=0.1"]
FAST = [*RUN, "--set", "model.img_size=32", "--mixed-precision", "no"]
FIELDS = """task method model seed protocol metric value trainable_parameters head_parameters total_parameters
percent_trainable epochs selected_epoch selected_by metrics test_metrics images_per_second wall_seconds
adapter_file_bytes split_note processes device config versions git command data_hash weights_hash"""


def start(folder: Path, *more: str) -> Command:
    return commands.start("tools/train_vtab.py", *FAST, "--output-dir", str(folder), *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert "result.json" in finish(start(folder))
    return folder


def test_result_says_what_was_done(whole):
    result = json.loads((whole / "result.json").read_text())
    assert set(result) == set(FIELDS.split())
    assert (result["task"], result["method"], result["model"]) == ("digits", "capaboost-lora", "test_vit")
    assert 0 <= result["value"] <= 100
    share = 100 * result["trainable_parameters"] / result["total_parameters"]
    assert result["percent_trainable"] == pytest.approx(share)
    assert result["adapter_file_bytes"] == (whole / "adapter" / "adapter.safetensors").stat().st_size
    assert (result["config"]["adapter"]["dropout"], result["config"]["train"]["epochs"]) == (0.1, 4)
    assert result["images_per_second"] > 0


def test_a_killed_run_resumes_to_identical_weights(whole, tmp_path):
    process = start(tmp_path / "cut")
    deadline = time.monotonic() + 300
    while not (tmp_path / "cut" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) < 4
    out = finish(start(tmp_path / "cut", "--resume"))
    assert "going on after epoch" in out
    whole_run, resumed = (load_file(run / "adapter" / "adapter.safetensors") for run in (whole, tmp_path / "cut"))
    assert whole_run.keys() == resumed.keys()
    assert all(torch.equal(whole_run[name], resumed[name]) for name in whole_run)
    values = [json.loads((folder / "result.json").read_text())["value"] for folder in (whole, tmp_path / "cut")]
    assert values[0] == values[1]


def refusal(capsys, *arguments: str) -> str:
    """The one line with which the command refuses, after exit code 2."""
    assert train_vtab.main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


WRONG = {
    "a key": (["--set", "train.epoch=3"], "did you mean train.epochs?"),
    "a value": (["--epochs", "0"], "train.epochs is 0"),
    "a preset": (["--method", "capaboost-lra"], "unknown preset"),
    "a model": (["--model", "vit_tny_patch16_224"], "did you mean vit_tiny_patch16_224?"),
    "a tag": (["--model", "capaboost_vit_micro_patch8_64.foo"], "type capaboost_vit_micro_patch8_64.tiny_imagenet"),
    "a class": (["--model", "resnet18"], "does not support ResNet"),
    "no file": (["--set", "model.pretrained=true", "--weights", "none.pth"], "there is no such file"),
    "classes": (["--set", "data.num_classes=4"], "data.num_classes=10"),
    "a config": (["--config", "none.yaml"], "cannot read none.yaml"),
    "a seed": (["--seed", "4294967296"], "train.seed is 4294967296; type a whole number from 0 to 4294967295"),
    "clipping": (["--set", "train.max_grad_norm=0"], "type a number above 0, such as 1.0, or null for no clipping"),
    "an unused setting": (["--method", "linear", "--set", "adapter.r=4"], "means nothing to method linear"),
    "a device": (["--device", "xpu:7"], "--device xpu:7 is not available here; type cpu, or a device of this machine"),
    "a folder": (["--source", "folder", "--data-dir", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    arguments, message = WRONG[case]
    assert message in refusal(capsys, *RUN, "--output-dir", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def test_quiet_prints_the_path_of_the_result_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    folder = tmp_path / "out"
    assert train_vtab.main([*FAST, "--quiet", "--device", "cpu", "--output-dir", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"result: {folder / 'result.json'}\n", "")
    assert "ACCELERATE_USE_CPU" not in os.environ
    assert json.loads((folder / "result.json").read_text())["device"].startswith("cpu")
    assert train_vtab.main([*FAST, "--quiet", "--print-config"]) == 0
    assert "batch_size:" in capsys.readouterr().out


def test_a_weights_file_of_another_model_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    foreign = tmp_path / "foreign.pth"
    torch.save({"conv1.weight": torch.zeros(2)}, foreign)
    arguments = [*RUN, "--set", "model.pretrained=true", "--weights", str(foreign)]
    assert "does not fit test_vit" in refusal(capsys, *arguments, "--output-dir", str(tmp_path / "out"))
    foreign.write_bytes(b"no weights")
    assert "does not fit test_vit" in refusal(capsys, *arguments, "--output-dir", str(tmp_path / "out"))


def test_a_folder_with_a_run_is_kept(whole, capsys):
    before = (whole / "result.json").read_bytes()
    assert "pass --resume or another" in refusal(capsys, *FAST, "--output-dir", str(whole))
    message = refusal(capsys, *FAST, "--output-dir", str(whole), "--resume", "--lr", "0.5")
    rate = json.loads(before)["config"]["train"]["lr"]
    assert f"train.lr: {rate} there, 0.5 here" in message
    assert (whole / "result.json").read_bytes() == before


def test_methods_keep_r_and_name_the_folder():
    from capaboost.runs.settings import VtabRun
    from capaboost.training.settings import load_run

    base = ROOT / "configs" / "vtab" / "_base.yaml"
    run = load_run(VtabRun, base, {"data": {"dataset": "x"}}, "padapter", ["adapter.r=3"])
    assert (run.adapter.method, run.adapter.num_tied, run.adapter.density, run.adapter.r) == ("padapter", 1, 1.0, 3)
    assert run.default_folder().parts[-1] == f"padapter-seed{run.train.seed}"


@pytest.mark.hard_case(31)
@pytest.mark.parametrize(
    "flag", ["lr-grid", "method", "output-dir", "config", "data-dir", "model", "weights", "dataset"]
)
def test_an_empty_flag_is_refused(flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train_vtab.main(["--dataset", "digits", f"--{flag}="])
    assert stopped.value.code == 2
    assert f"argument --{flag}: the value is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("flags", ["--epochs many", "--nothing", "--source web", "--seed 1.5", ""])
def test_wrong_flags_exit_with_2(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_vtab.main(flags.split())
    assert stopped.value.code == 2


def test_flags_that_argparse_knows_answer_at_once(capsys):
    with pytest.raises(SystemExit):
        train_vtab.main(["--help"])
    out = capsys.readouterr().out
    assert "--set SECTION.KEY=VALUE" in out
    assert all(f"  {name}=" in out for name in ("model.weights", "data.num_classes", "train.min_lr"))
    assert "\n  adapter." not in out  # those of a method are in the help with its --method
    with pytest.raises(SystemExit):
        train_vtab.main([])
    assert "--dataset dtd" in capsys.readouterr().err


def test_help_after_a_method_has_its_settings_with_the_presets_values(capsys):
    def shown(method):
        with pytest.raises(SystemExit) as stopped:
            train_vtab.main(["--method", method, "--help"])
        return stopped.value.code, capsys.readouterr()

    (code, tied), (_, plain), (_, linear) = map(shown, ("capaboost-lora", "lora", "linear"))
    names = {line.split("=")[0].strip() for line in tied.out.splitlines() if line.startswith("  adapter.")}
    assert code == 0
    assert names == {f"adapter.{name}" for name in METHODS["lora"].model_fields}
    assert "  adapter.num_tied=2\n" in tied.out
    assert "  adapter.num_tied=1\n" in plain.out
    assert "adapter." not in linear.out
    code, wrong = shown("lroa")
    assert code == 2
    assert "did you mean lora?" in wrong.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], True),
        (["--lr", "1e-3"], False),
        (["--epochs", "4"], False),
        (["--set", "train.lr=1e-3"], False),
        (["--set", "train.epochs=20"], False),
        (["--set", "adapter.r=2"], True),
    ],
)
def test_a_recipe_that_is_cut_short_is_said(flags, said, capsys):
    options = train_vtab.vtab_parser().parse_args(["--dataset", "digits", "--epochs", "3", *flags])
    train_vtab.load(options)
    assert ("was chosen for 20 epochs" in capsys.readouterr().err) == said


def test_of_several_processes_one_says_that_a_recipe_is_cut_short(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    train_vtab.load(train_vtab.vtab_parser().parse_args(["--dataset", "digits", "--epochs", "3"]))
    assert capsys.readouterr().err == ""


BASE, TIED = "_base.yaml", "capaboost-lora"
ORIGINS = {  # flags, and the origin of some settings
    "a recipe": ([], {"data.num_classes": "dtd.yaml", "adapter.r": BASE, "data.augment": "default"}),
    "a preset": (["--method", TIED], {"adapter.num_tied": f"preset {TIED}", "adapter.r": BASE}),
    "of a preset": (["--method", "ssf"], {"train.lr": f"{BASE} for ssf", "adapter.method": "preset ssf"}),
    "flags": (["--lr", "0.01", "--seed", "3"], {"train.lr": "a flag", "train.seed": "a flag", "train.epochs": BASE}),
    "the last counts": (["--lr", "0.01", "--set", "train.lr=0.02"], {"train.lr": "--set"}),
    "a list": (["--set", "adapter.targets=[qkv, fc1]"], {"adapter.targets": "--set"}),
    "names with values": (["--set", "model.kwargs.class_token=false"], {"model.kwargs": "--set"}),
    "a budget": (
        ["--dataset", "digits", "--budget", "30k"],
        {"adapter.r": "--budget", "adapter.alpha": "_micro.yaml"},
    ),
}


@pytest.mark.parametrize("case", ORIGINS)
def test_printed_settings_say_where_each_comes_from_and_are_a_config(case, tmp_path, capsys):
    flags, wanted = ORIGINS[case]
    assert train_vtab.main(["--dataset", "dtd", *flags, "--print-config"]) == 0
    text = capsys.readouterr().out
    section, found = "", {}
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            section = line[:-1]
            continue
        setting, origin = line.split("  # ")
        found[f"{section}.{setting.split(':')[0].strip()}"] = origin
    assert found.items() >= wanted.items()
    (tmp_path / "printed.yaml").write_text(text)
    assert train_vtab.main(["--config", str(tmp_path / "printed.yaml"), "--print-config"]) == 0
    again = capsys.readouterr().out
    assert yaml.safe_load(again) == yaml.safe_load(text)
    assert "# default" in text
    origins = {
        line.partition("  # ")[2] for line in again.splitlines() if "kwargs" not in line and not line.endswith(":")
    }
    assert origins == {"printed.yaml"}


DIFFERS = {
    "a recipe": (
        [],
        f"{TIED} as {BASE} has it: scaling alpha-r (in Python stable), dropout 0.1 (in Python 0.0)\n",
    ),
    "what is typed": (["--set", "adapter.scaling=stable", "--set", "adapter.dropout=0.2"], ""),
    "nothing": (["--method", "bitfit"], ""),
    "quiet": (["--quiet"], ""),
}


@pytest.mark.parametrize("case", DIFFERS)
def test_what_a_recipe_changes_of_a_preset_is_said(case, capsys):
    flags, said = DIFFERS[case]
    run = train_vtab.load(train_vtab.vtab_parser().parse_args(["--dataset", "dtd", *flags]))
    assert capsys.readouterr().err == said
    if case == "a recipe":
        python = PRESETS["capaboost-lora"].to_dict()
        assert {key: value for key, value in run.adapter.to_dict().items() if value != python[key]} == {
            "scaling": "alpha-r",
            "dropout": 0.1,
        }
