"""The rank report: a saved adapter, a study that trains nothing twice, the theorem, and wrong input."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, BertConfig

import capaboost_text
import capaboost_vision  # noqa: F401  registers `capaboost`
from capaboost.commands import rank as command
from capaboost.report.rank import adapter_record, paper_values, study_table
from capaboost_core import CapaBoostConfig, save_adapter, trainable_parameters
from capaboost_core.methods import PRESETS

TINY = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
STUDY = ["--r", "2", "--num-tied", "1", "2", "--epochs", "1"]
STUDY += ["--set", "model.name=test_vit", "--set", "model.pretrained=false", "--set", "model.drop_path_rate=0.0"]
STUDY += ["--set", "model.img_size=32"]


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter)
    return model


def saved(model: nn.Module, folder: Path) -> Path:
    return save_adapter(randomised(model), folder)


def timm_model(num_classes=5, **settings):
    return timm.create_model("test_vit", num_classes=num_classes, capaboost=settings)


def bert(kind, folder: Path, labels: int):
    config = BertConfig(**TINY, num_labels=labels)
    config.save_pretrained(folder)
    config._name_or_path = str(folder)
    return capaboost_text.inject(kind.from_config(config), {"r": 3})


def report(*arguments: str) -> dict:
    path = Path(arguments[-1])
    assert command.main([*arguments[:-1], "--output", str(path)]) == 0
    return json.loads(path.read_text())


MODELS = {
    "capaboost": (lambda folder: timm_model(r=3, num_tied=2), 6, 12),
    "lora": (lambda folder: timm_model(r=3, num_tied=1, density=1.0), 3, 12),
    "no head": (lambda folder: timm_model(0, r=3, num_tied=4), 12, 12),
    "classes": (lambda folder: bert(AutoModelForSequenceClassification, folder / "base", 4), 6, 4),
    "questions": (lambda folder: bert(AutoModelForQuestionAnswering, folder / "base", 2), 6, 4),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_saved_adapter_is_reported_by_layer_and_in_total(case, tmp_path, capsys):
    make, rank, increments = MODELS[case]
    model = make(tmp_path)
    written = report("--adapter", str(saved(model, tmp_path / "adapter")), str(tmp_path / "report.json"))
    (record,) = written["combinations"]
    ranks = [row["rank"] for row in record["increments"]]
    assert ranks == [rank] * increments
    stored = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert record["trainable_parameters"] == sum(t.numel() for name, t in stored.items() if "lora_" in name)
    assert all(len(row["singular_values"]) == rank for row in record["increments"])
    assert {"plots", "versions", "git", "command"} <= written.keys()
    out = capsys.readouterr().out
    assert f"{sum(ranks)} " in out
    assert all(row["layer"] in out for row in record["increments"])


def no_adapter(folder):
    (folder / "adapter").mkdir()


def padapter(folder):
    saved(timm_model(method="padapter", r=2), folder / "adapter")


def foreign_base(folder):
    saved(timm_model(r=2), folder / "adapter")
    path = folder / "adapter" / "capaboost_config.json"
    path.write_text(path.read_text().replace('"test_vit"', '"nowhere/no_vit"'))


def truncated(folder):
    saved(timm_model(r=2), folder / "adapter")
    path = folder / "adapter" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


WRONG = {no_adapter: "save_adapter wrote", padapter: "padapter adds no increment", foreign_base: "nowhere/no_vit",
         truncated: "truncated"}  # fmt: skip


@pytest.mark.parametrize("damage", WRONG)
def test_what_cannot_be_reported_is_one_line_and_writes_nothing(damage, tmp_path, capsys):
    damage(tmp_path)
    output = tmp_path / "out.json"
    assert command.main(["--adapter", str(tmp_path / "adapter"), "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert WRONG[damage] in line
    assert not output.exists()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    report(*STUDY, "--output-dir", str(folder / "runs"), str(folder / "study.json"))
    return folder


def test_study_trains_each_pair_to_rank_dr(study):
    rows = json.loads((study / "study.json").read_text())["combinations"]
    assert [(row["r"], row["num_tied"], row["density"]) for row in rows] == [(2, 1, 1.0), (2, 2, 0.5)]
    for row in rows:
        assert {increment["rank"] for increment in row["increments"]} == {row["bound"] for row in row["increments"]}
        assert {increment["bound"] for increment in row["increments"]} == {2 * row["num_tied"]}
        assert row["run"]["config"]["train"]["epochs"] == 1
    assert rows[0]["parameter_factor"] == 0.25  # of LoRA at r = 8
    assert rows[1]["parameter_factor"] == pytest.approx(0.75 * 0.25, rel=0.05)


def test_a_finished_study_is_not_trained_again_and_other_settings_are_refused(study, tmp_path, capsys):
    files = {path: path.stat().st_mtime_ns for path in (study / "runs").rglob("*")}
    again = report(*STUDY, "--output-dir", str(study / "runs"), str(tmp_path / "again.json"))
    assert again["combinations"] == json.loads((study / "study.json").read_text())["combinations"]
    assert "run 1" not in capsys.readouterr().err
    wrong = [*STUDY, "--set", "train.lr=0.5", "--output-dir", str(study / "runs")]
    assert command.main(wrong) == 2
    assert "train.lr" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (study / "runs").rglob("*")} == files


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "adapter.method=padapter"], "only lora has increments to report"),
        (["--set", "adapter.r=3"], "type --r 3"),
        (["--set", "adapter.num_tied=3"], "type --num-tied 3"),
        (["--output", "/proc/x/y.json"], "--output '/proc/x/y.json' cannot be written"),
    ],
)
def test_what_cannot_be_reported_is_not_trained(arguments, message, tmp_path, capsys):
    assert command.main([*STUDY, "--output-dir", str(tmp_path / "runs"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "runs").exists()


def test_table_has_the_papers_layout_and_marks_where_the_width_is_the_bound():
    plain, tied = (randomised(timm_model(r=8, **d)) for d in (dict(num_tied=1, density=1.0), dict(num_tied=2)))
    wide = randomised(timm_model(r=64, num_tied=4))  # on layers of width 64
    table = study_table([adapter_record(model) for model in (wide, plain, tied)])
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [column.header for column in table.columns] == ["rank of method", "r = 8", "r = 64"]
    assert rows[0] == ("LoRA", "8 (8)", "")
    assert rows[1] == ("  #Param", "1x (1x)", "")
    assert rows[4] == ("CapaBoost-LoRA (d = 2)", "16 (16)", "")
    assert rows[8] == ("CapaBoost-LoRA (d = 4)", "", "64, full (256)")


def test_theorem_report(tmp_path, capsys):
    written = report("--theorem", "--size", "24", "--draws", "3", "--seed", "5", str(tmp_path / "theorem.json"))
    assert (written["plots"], written["seed"], written["size"]) == (["theorem"], 5, 24)
    assert {row["draws"] for row in written["independent"] + written["masked"]} == {3}
    assert "3 of 3" in capsys.readouterr().out
    assert command.main(["--theorem", "--size", "4"]) == 2
    for wrong in (["--theorem", "--draws", "0"], ["--theorem", "--adapter", "x"]):
        with pytest.raises(SystemExit):
            command.main(wrong)


def test_the_papers_values_stand_beside_its_own_settings_only():
    assert paper_values(CapaBoostConfig(r=64, num_tied=4)) == {"rank": 256, "parameter_factor": 7.5}
    assert paper_values(PRESETS["lora"]) == {"rank": 8, "parameter_factor": 1}
    for other in (dict(r=4), dict(num_tied=3), dict(density=0.3), dict(mask="same"), dict(num_tied=1)):
        assert paper_values(CapaBoostConfig(**other)) is None
