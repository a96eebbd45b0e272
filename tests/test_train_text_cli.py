"""The commands on texts with tiny models and files: whole runs, killed ones, wrong input."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from capaboost.commands import train_glue, train_lm, train_squad
from capaboost.training.run_folder import worth
from tests import commands
from tests.commands import Command, finish
from tests.text.tiny_encoder import save_encoder

COMMON = ["--epochs", "3", "--batch-size", "8", "--mixed-precision", "no", "--set", "adapter.r=2"]


def arguments(place: Path, kind: str) -> list[str]:
    if kind == "lm":
        return [str(place / "pairs.jsonl"), "--model", str(place / "decoder"), *COMMON, "--set", "data.max_length=32"]
    task = ["--task", "cola"] if kind == "glue" else ["--dataset", "squad_v1", "--set", "data.max_length=64"]
    more = ["--set", "data.max_length=32"] if kind == "glue" else ["--set", "data.stride=8", "--protocol", "select"]
    more += [] if kind == "glue" else ["--set", "train.warmup_steps=2"]
    return [*task, "--model", str(place / "encoder"), "--data-dir", str(place), *COMMON, *more]


def start(place: Path, kind: str, output: Path, *more: str) -> Command:
    return commands.start(f"tools/train_{kind}.py", *arguments(place, kind), "--output-dir", str(output), *more)


def test_two_processes_give_the_perplexity_of_one(place, tmp_path):
    """Each trains and scores its part, of other numbers of tokens than the other's."""
    flags = ["tools/train_lm.py", *arguments(place, "lm"), "--epochs", "1", "--lr", "0.01", "--output-dir"]
    finish(commands.start(*flags, str(tmp_path / "one")))
    finish(commands.ranks(2, *flags, str(tmp_path / "two")))
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("metrics", "test_metrics"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


def test_rows_that_are_left_out_or_repeated_are_said(place, tmp_path, monkeypatch):
    prompts = ["Who?" if i % 2 else "Who? " * 40 for i in range(10)]
    rows = [json.dumps({"prompt": prompt, "completion": f"Duke {i}"}) + "\n" for i, prompt in enumerate(prompts)]
    (tmp_path / "train.jsonl").write_text("".join(rows[:8]))
    (tmp_path / "held.jsonl").write_text("".join(rows[6:]))
    flags = [*arguments(place, "lm")[1:], "--epochs", "1", "--validation", str(tmp_path / "held.jsonl")]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.warns(UserWarning, match="held-out rows") as caught:
        assert train_lm.main([str(tmp_path / "train.jsonl"), *flags, "--output-dir", str(tmp_path / "out")]) == 0
    said = ["1 held-out rows are trained on as well", "6 rows left out, of which nothing is predicted in 32 tokens"]
    assert [str(warning.message) for warning in caught if warning.category is UserWarning] == said
    assert json.loads((tmp_path / "out" / "result.json").read_text())["split_note"].endswith("; ".join(said))


KINDS = [("glue", "matthews", "sentences"), ("squad", "f1", "windows"), ("lm", "perplexity", "blocks")]


@pytest.mark.parametrize(("kind", "metric", "unit"), KINDS)
def test_a_killed_run_resumes_to_identical_weights(place, tmp_path, kind, metric, unit):
    assert "result.json" in finish(start(place, kind, tmp_path / "whole"))
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert (result["metric"], result["selected_by"]) == (metric, f"selection_{metric}")
    assert result["value"] == result["test_metrics"][metric]
    assert result[f"{unit}_per_second"] > 0
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    best = max((line[f"selection_{metric}"] for line in lines), key=lambda value: worth(metric, value))
    assert result["metrics"][f"selection_{metric}"] == best
    process = start(place, kind, tmp_path / "cut")
    deadline = time.monotonic() + 300
    while not (tmp_path / "cut" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(place, kind, tmp_path / "cut", "--resume"))
    whole, resumed = (load_file(tmp_path / run / "adapter" / "adapter.safetensors") for run in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["value"] == result["value"]


COMMANDS = {"glue": train_glue, "squad": train_squad, "lm": train_lm}
WRONG = {
    "a task": ("glue", ["--task", "colla"], "did you mean cola?"),
    "a data set": ("squad", ["--dataset", "squad"], "type one of: squad_v1, squad_v2"),
    "a method": ("glue", ["--method", "capaboost-lra"], "unknown preset"),
    "a key": ("squad", ["--set", "data.strid=3"], "did you mean data.stride?"),
    "a length": ("glue", ["--set", "data.max_length=65"], "reads 64 tokens; set 64 or less"),
    "a stride": ("squad", ["--set", "data.stride=64"], "windows overlap by less than their length"),
    "a model": ("glue", ["--model", "nowhere/at/all"], "cannot load the tokenizer of nowhere/at/all"),
    "no data": ("glue", ["--data-dir", "nowhere"], "nowhere does not exist"),
    "no questions": ("squad", ["--data-dir", "nowhere"], "train-v1.1.json does not exist"),
    "a warm-up": ("squad", ["--set", "train.warmup_steps=1000"], "below the run's"),
    "a grid": ("glue", ["--lr-grid", "high"], "type numbers above 0 with commas between"),
    "a grid without selection": ("glue", ["--lr-grid", "--protocol", "adalora"], "pass --protocol propetl"),
    "texts": ("lm", ["--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
    "a held-out file": ("lm", ["--validation", "nowhere.txt"], "cannot read nowhere.txt"),
    "a share": ("lm", ["--set", "data.holdout=1"], "data.holdout is 1; type a number above 0"),
    "a block": ("lm", ["--set", "data.max_length=65"], "reads 64 tokens; set 64 or less"),
    "an encoder": ("lm", ["--model", "ENCODER"], "has no end token; name one of its tokens as eos_token"),
    "no head": ("lm", ["--method", "linear"], "nothing"),
    "rows": ("squad", ["--set", "data.max_dev_rows=1"], "type a whole number of 2 or more"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(case, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kind, changes, message = WRONG[case]
    changes = [str(place / "encoder") if change == "ENCODER" else change for change in changes]
    command = [*arguments(place, kind), "--output-dir", str(tmp_path / "out"), *changes]
    assert COMMANDS[kind].main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_malformed_row_is_named_with_file_and_line(place, tmp_path, capsys):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text("gj04\t1\t\tgood\ngj04\t7\t\tbad\n")
    (tmp_path / "CoLA" / "dev.tsv").write_text("gj04\t1\t\tgood\n")
    command = [*arguments(place, "glue"), "--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert train_glue.main(command) == 2
    assert "train.tsv, line 2: the label is '7', but must be one of 0, 1" in capsys.readouterr().err


def test_an_encoder_with_missing_weights_is_refused(place, tmp_path, capsys):
    foreign = save_encoder(tmp_path / "foreign")
    states = load_file(foreign / "model.safetensors")
    from safetensors.torch import save_file

    save_file({k: v for k, v in states.items() if "layer.1" not in k}, foreign / "model.safetensors", {"format": "pt"})
    command = [*arguments(place, "glue"), "--model", str(foreign), "--output-dir", str(tmp_path / "out")]
    assert train_glue.main(command) == 2
    assert (
        "lacks 16 of the weights that its config.json asks for, such as bert.encoder.layer.1"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_default_settings_are_the_papers():
    from capaboost.runs.settings import glue_config_file

    folder = Path("configs")
    assert glue_config_file(folder, "rte", None, None) == folder / "roberta-base" / "rte-lora.yaml"
    deberta = glue_config_file(folder, "rte", "microsoft/deberta-v3-base", "capaboost-hadapter")
    assert deberta == folder / "deberta-v3-base" / "rte-padapter.yaml"
    assert glue_config_file(folder, "rte", "bert-base", "prefix").name == "rte-padapter.yaml"


@pytest.mark.parametrize("command", COMMANDS.values())
def test_flags_that_argparse_knows_answer_at_once(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    out = capsys.readouterr().out
    assert "--lr-grid" in out
    assert ("  data.packing=true\n" if command is train_lm else "  data.max_train_rows=null\n") in out
    with pytest.raises(SystemExit):
        command.main([])
    assert "such as " in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["", "--validation", "--test"])
def test_a_missing_file_of_texts_is_said_before_a_model_is_loaded(flag, tmp_path, capsys):
    texts, missing = tmp_path / "texts.txt", str(tmp_path / "none.txt")
    texts.write_text("some words")
    typed = [str(texts), flag, missing] if flag else [missing]
    output = tmp_path / "run"
    assert train_lm.main([*typed, "--model", str(tmp_path / "no-model"), "--output-dir", str(output)]) == 2
    *_, error = capsys.readouterr().err.splitlines()  # after what the recipe changes of the preset
    assert error.startswith(f"error: cannot read {missing}, which is no file; ")
    assert not output.exists()
