"""The SQuAD configurations hold the numbers of Tables 14 and 15, for every method of these tables."""

import json
from pathlib import Path

import pytest
import torch

from capaboost.runs.settings import SquadRun
from capaboost.training.settings import load_run, read_config
from capaboost_core import parameter_counts
from capaboost_text import architectures, inject

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "squad"
PAPER = {number: json.loads((ROOT / f"results/paper/table-{number}.json").read_text()) for number in (14, 15)}
WIDTHS = (64, 32, 16, 8)  # Table 14, CapaBoost-PAdapter
CASES = [(version, width) for version in ("v1", "v2") for width in WIDTHS]
# Table 14's rows by the file of their budget, which is named for the width of a PAdapter.
ROWS = [
    (row["name"], row["build"], {0.65: 64, 0.32: 32, 0.16: 16, 0.08: 8}[row["percent_trainable"]])
    for row in PAPER[14]["rows"]
]


def path_of(version, width):
    return FOLDER / f"{version}_padapter_{width}.yaml"


def test_there_is_one_file_for_each_budget():
    assert {p.name for p in FOLDER.glob("*")} == {"_base.yaml", *(path_of(*case).name for case in CASES)}


@pytest.mark.parametrize(("version", "width"), CASES)
def test_numbers(version, width):
    path = path_of(version, width)
    command = path.read_text().splitlines()[0]
    name = path.relative_to(ROOT).as_posix()
    assert command == f"# accelerate launch tools/train_squad.py --dataset squad_{version} --config {name}"
    raw, run = read_config(path), load_run(SquadRun, path, {}, None, [])
    assert raw["model"] == {"name": "microsoft/deberta-v3-base"}
    assert raw["data"] == {"dataset": f"squad_{version}", "dir": None, "max_length": 384, "stride": 128}
    adapter = run.adapter
    assert (adapter.method, adapter.r, adapter.scale, adapter.init) == ("padapter", width, 1.0, "official")
    cell = next(row for row in PAPER[15]["rows"] if row["name"].startswith(f"SQuAD{version}"))
    for setting, value in cell["settings"].items():
        section = adapter if setting in ("num_tied", "density") else run.train
        assert getattr(section, setting) == value, setting
    train = run.train
    assert (train.weight_decay, train.warmup_steps, train.schedule, train.seed) == (0.01, 1000, "linear", 42)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("name", "build", "width"), ROWS)
def test_every_method_of_table_14_has_its_width(version, name, build, width):
    adapter = load_run(SquadRun, path_of(version, width), {}, build["preset"], []).adapter
    assert adapter.r == build["r"], name
    if adapter.method == "lora":
        assert (adapter.targets, adapter.alpha) == ("all-linear", 16)
    if adapter.method == "hadapter":
        assert (adapter.activation, adapter.after_dropout) == ("swish", True)


SHARES = {  # percent of 183,831,552, by hand on 12 layers of width 768; LoRA on all six matrices
    "padapter": {64: 0.647, 32: 0.326, 16: 0.165, 8: 0.085},
    "hadapter": {64: 0.652, 32: 0.331, 16: 0.171, 8: 0.091},
    "lora": {64: 0.722, 32: 0.361, 16: 0.180, 8: 0.090},
    "capaboost-padapter": {64: 0.487, 32: 0.246, 16: 0.125, 8: 0.065},
    "capaboost-lora": {64: 0.541, 32: 0.271, 16: 0.135, 8: 0.068},
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("method", SHARES)
def test_shares_of_every_baseline(method, width):
    adapter = load_run(SquadRun, path_of("v1", width), {}, method, []).adapter
    with torch.device("meta"):
        model = architectures.build("microsoft/deberta-v3-base")
    assert parameter_counts(inject(model, adapter)).percent == pytest.approx(SHARES[method][width], abs=0.0015)


def test_full_and_linear_have_rates_and_epochs_of_their_own():
    full, linear = (load_run(SquadRun, path_of("v1", 64), {}, method, []).train for method in ("full", "linear"))
    assert (full.lr, full.epochs, full.warmup_steps) == (1.5e-5, 3, None)
    assert (linear.lr, linear.epochs) == (5e-3, 5)
