"""The report's command: the paper's shares come out, differences have reasons, mistakes have one line."""

import json
import statistics
from pathlib import Path

import pytest

from capaboost.commands import flops
from capaboost.report.cost import settings_of
from capaboost.report.models import Sizes, make_subject
from capaboost.report.paper import QUANTITIES, PaperCounter, compare, read_tables
from capaboost.runs.settings import shipped
from capaboost_core.injection import parameter_counts
from capaboost_core.methods import PRESETS
from tests.commands import start

ROOT = Path(__file__).parents[1]
VIT = "vit_base_patch16_224"
TABLES = {int(table["source"].split()[-1]): table for table in read_tables(shipped("results/paper"))}
SMALL = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "vocab_size": 11, "max_position_embeddings": 6}  # fmt: skip


@pytest.fixture(scope="module")
def comparisons():
    return list(compare(list(TABLES.values()), PaperCounter(lambda name: make_subject(name, Sizes()))))


@pytest.fixture
def small(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return tmp_path


def test_report_on_a_vit(tmp_path, capsys):
    stem = tmp_path / "vit"
    command = ["--model", VIT, "--methods", "lora,capaboost-lora", "--set", "adapter.r=8", "--output", str(stem)]
    assert flops.main(command) == 0
    shown = capsys.readouterr().out
    for text in ("294,912", "85,798,656", "3 x 224 x 224", "differs by +0.00 %", "layer_norm"):
        assert text in shown, text
    report = json.loads(stem.with_suffix(".json").read_text())
    lora, ours = report["rows"]
    assert lora["trainable_parameters"] == 294_912
    assert ours["trainable_parameters"] == pytest.approx(221_184, rel=0.01)
    for name in ("forward", "step", "added"):
        assert ours[f"{name}_effective_times_lora"] == pytest.approx(1, abs=1e-9)
        assert ours[f"{name}_executed_times_lora"] > 1
    assert report["base"]["total_parameters"] == 85_798_656
    assert report["unsupported"] == {"lora": {}, "capaboost-lora": {}}
    assert report["negligible"]["lora"]["aten::layer_norm"] == 25
    assert report["base"]["forward_multiply_adds"] == report["base"]["torch_multiply_adds"]
    cells = [(row["paper"], row["settings"].get("targets"), round(row["here"], 3)) for row in report["paper"]]
    assert cells == [(0.29, None, 0.295), (0.29, "fused-qkv", 0.295), (0.22, None, 0.221), (0.22, "fused-qkv", 0.221)]
    assert "NOAH" in shown  # whose reading it is
    assert report["versions"]["torch"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".md"}


def test_a_model_of_the_paper_gets_its_tables(capsys):
    assert flops.main(["--model", "FacebookAI/roberta-base", "--methods", "lora"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "Table 2",
        "Table 8",
        "0.951 %",
        "0.713 %",
        ": biases are counted here",
        "not compared: AdaLoRA, whose",
    ):
        assert text in shown, text
    assert "slips of Table 2: ProPETL-Prefix-Tuning, name: these are ProPETL-LoRA's scores" in " ".join(shown.split())
    assert "Table 3" not in shown
    assert flops.compare_paper("vit_small_patch16_224") == ([], {})


@pytest.mark.parametrize(
    ("model", "settings", "shares"),
    [
        ("roberta-base", {"r": 32}, (0.95, 0.71)),  # Table 2
        ("microsoft/deberta-v3-base", {"r": 8, "targets": "all-linear"}, (0.72, 0.54)),  # Table 3
    ],
)
def test_shares_of_text_models(model, settings, shares):
    subject = make_subject(model, Sizes())
    for method, share in zip(("lora", "capaboost-lora"), shares, strict=True):
        adapted = subject.inject(subject.build(), settings_of(method, settings))
        assert parameter_counts(adapted).percent == pytest.approx(share, abs=0.005)


def test_memory_is_measured(small, capsys):
    command = ["--model", str(small), "--methods", "lora,full", "--sequence-length", "6", "--classes", "3"]
    assert flops.main([*command, "--memory", "--device", "cpu", "--output", str(small / "report")]) == 0
    report = json.loads((small / "report.json").read_text())
    lora, full = (row["peak_memory_bytes"] for row in report["rows"])
    weights = 4 * (report["base"]["total_parameters"] + report["base"]["head_parameters"])
    assert lora > weights + report["rows"][0]["optimizer_state_bytes"]
    assert full > 4 * weights  # gradients and two moments beside the weights
    assert "one AdamW step" in capsys.readouterr().out


def test_memory_of_a_vit_grows_with_the_batch():
    peaks = []
    for batch in (1, 3):
        sizes = Sizes(batch_size=batch, image_size=32)
        options = flops.flops_parser().parse_args(["--model", "vit_tiny_patch16_224", "--device", "cpu"])
        peak, _ = flops.memory_probe(options, sizes)
        peaks.append(peak(settings_of("lora", {})))
    assert 0 < peaks[0] < peaks[1]


def test_every_difference_from_the_paper_has_a_reason_and_no_reason_is_idle(comparisons):
    assert len(comparisons) >= 70
    for comparison in comparisons:
        assert comparison.differs == bool(comparison.why), comparison  # a reading neither differs nor has a reason
        assert "\n" not in (comparison.why or "")
    reasons = [reason for table in TABLES.values() for row in table["rows"] for reason in row.get("why", {}).values()]
    assert len(reasons) == sum(comparison.differs for comparison in comparisons)


def test_both_readings_of_debertas_lora_are_in_the_report(comparisons):
    found = {
        (c.method, c.settings["targets"]): round(c.here, 2)
        for c in comparisons
        if c.source.endswith("Table 3") and c.quantity == "percent_trainable" and "targets" in c.settings
    }
    assert found == {
        ("LoRA", "all-linear"): 0.72,
        ("LoRA", "attention-qv"): 0.16,
        ("ProPETL-LoRA", "all-linear"): 0.78,
        ("CAPABOOST-LoRA", "all-linear"): 0.54,
        ("CAPABOOST-LoRA", "attention-qv"): 0.12,
    }


def test_reasons_hold_by_hand_arithmetic(comparisons):
    """Closed forms on 12 layers of width 768: weights without biases, r on all six matrices."""
    total, width, layers, six = 183_831_552, 768, 12, 4 * 2 * 768 + 2 * (768 + 3072)
    hadapter = {r: 100 * 2 * layers * 2 * width * r / total for r in (4, 8, 16)}
    assert hadapter == pytest.approx({4: 0.08, 8: 0.16, 16: 0.32}, abs=0.002)  # as printed, once biases are left out
    assert 100 * 2 * layers * (2 * width * 32 + 32 + width) / total == pytest.approx(0.652, abs=5e-4)
    assert 100 * layers * six * 8 / total == pytest.approx(0.72, abs=0.002)
    assert 100 * 0.75 * layers * 2 * width * 64 / 124_055_040 == pytest.approx(0.713, abs=5e-4)
    shares = {c.method: c.here for c in comparisons if c.quantity == "flops" and c.source.endswith("Table 3")}
    assert shares["CAPABOOST-PAdapter"] == pytest.approx(shares["PAdapter"] / 2)
    tokens, positions = 128, 2 * 512 * 2 * width  # query and key see 512 positions each
    assert shares["PAdapter"] == pytest.approx(2 * width * 64 * tokens / (8 * (six * tokens + positions)))
    four = 4 * 2 * width  # q, k, v and o; at 256 tokens
    assert 2 * width * 64 * 256 == 8 * (four * 256 + positions)


def test_every_row_with_a_count_is_built_here_or_says_why_not():
    for row in (row for table in TABLES.values() for row in table["rows"]):
        if any(row.get(quantity) is not None for quantity in QUANTITIES):
            assert ("apart" in row) != (row.get("build", {}).get("preset") in PRESETS), row["name"]


# Two averages of the paper are not the means of their rows.
MISPRINTED = {(3, "ProPETL-PAdapter"): 88.85, (17, "AdaMix"): 85.73}


@pytest.mark.parametrize("number", [2, 3, 5, 16, 17])
def test_transcribed_scores_have_the_printed_average(number):
    for row in TABLES[number]["rows"]:
        scores = {name: score["mean"] if isinstance(score, dict) else score for name, score in row["scores"].items()}
        average = scores.pop("All", None) or scores.pop("Average")
        expected = MISPRINTED.get((number, row["name"]), average)
        assert statistics.mean(scores.values()) == pytest.approx(expected, abs=0.011), row["name"]


def test_transcribed_squad_scores_have_the_printed_average():
    for name, averages in TABLES[4]["averages"].items():
        rows = [row["scores"] for row in TABLES[4]["rows"] if row["name"] == name]
        for metric, average in averages.items():
            values = [score for row in rows for column, score in row.items() if column.endswith(metric)]
            assert statistics.mean(values) == pytest.approx(average, abs=0.051), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit_base_patch16_225"], "did you mean vit_base_patch16_224?"),
        (["--model", "/no/such/folder"], "roberta-base"),
        (["--model", "resnet18", "--methods", "lora"], "does not support ResNet"),
        (["--model", "roberta-base", "--methods", "lora,lorra"], "'lorra'"),
        (["--model", "roberta-base", "--set", "adapter.rank=3"], "rank"),
        (["--model", "roberta-base", "--set", "train.lr=1"], "adapter"),
        (["--model", "roberta-base", "--set", "r=3"], "section.key=value"),
        (["--model", "roberta-base", "--sequence-length", "513"], "up to 512"),
        (["--model", "roberta-base", "--image-size", "224"], "--sequence-length"),
        (["--model", VIT, "--sequence-length", "12"], "--image-size"),
        (["--model", VIT, "--image-size", "8"], "--image-size 8"),
        (["--model", "resnet18", "--image-size", "224"], "--image-size 224"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys, tmp_path):
    assert flops.main([*arguments, "--output", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("stem", ["/proc/x/y", "{}/" + "a" * 300, "{}/file/y"])
def test_a_target_that_cannot_be_written_is_found_before_counting(stem, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert flops.main(["--model", "no such model", "--output", stem.format(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --output '")
    assert "cannot be written" in line


def test_the_command_itself_answers_in_one_line():
    process = start("-m", "capaboost", "flops", "--model", VIT, "--methods", "lorra")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: unknown method 'lorra'")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--paper", "--model", VIT], ["--model", VIT, "--batch-size", "0"]])
def test_a_wrong_flag_is_refused_at_once(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        flops.main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err
