"""The GLUE configurations hold the numbers of Tables 9, 10, 12 and 13, and quote Tables 2 and 3."""

import json
from pathlib import Path

import pytest
import torch

from capaboost.commands import train_glue
from capaboost.runs.settings import GlueRun, family_of, glue_config_file
from capaboost.training.settings import build_run, load_run, read_config
from capaboost.training.tuning import parse_rates
from capaboost_core import parameter_counts
from capaboost_text import architectures, inject
from capaboost_text.glue.data import PROTOCOLS
from capaboost_text.glue.tasks import TASKS

FOLDER = Path(__file__).parents[2] / "configs" / "glue"
ROOT = Path(__file__).parents[2]
KINDS = {
    ("roberta-base", "lora"): 9,
    ("roberta-base", "padapter"): 10,
    ("deberta-v3-base", "lora"): 12,
    ("deberta-v3-base", "padapter"): 13,
}
PAPER = {n: json.loads((ROOT / f"results/paper/table-{n:02d}.json").read_text()) for n in (2, 3, *KINDS.values())}
ROWS = tuple(row["name"].lower().replace("-", "") for row in PAPER[9]["rows"])
# Of the released scripts, for DeBERTa: length, warm-up, alpha.
SCRIPTS = {
    "mnli": (256, {"warmup_steps": 1000}, 16),
    "qnli": (320, {"warmup_steps": 500}, 32),
    "rte": (512, {"warmup_steps": 200}, 16),
    "cola": (64, {"warmup_steps": 100}, 32),
    "sst2": (128, {"warmup_steps": 1000}, 16),
    "mrpc": (320, {"warmup_ratio": 0.1}, 32),
    "qqp": (320, {"warmup_steps": 2000}, 16),
    "stsb": (128, {"warmup_steps": 100}, 32),
}
WIDTH = {
    ("roberta-base", "lora"): 32,
    ("roberta-base", "padapter"): 64,
    ("deberta-v3-base", "lora"): 8,
    ("deberta-v3-base", "padapter"): 32,
}
CASES = [(model, method, task) for model, method in KINDS for task in ROWS]


def path_of(model, method, task):
    return FOLDER / model / f"{task}-{method}.yaml"


def test_there_is_a_file_for_each_case():
    wanted = {path_of(*case) for case in CASES}
    bases = {FOLDER / "_base.yaml", FOLDER / "_own.yaml", *(FOLDER / model / "_base.yaml" for model, _ in KINDS)}
    assert set(FOLDER.rglob("*.yaml")) == wanted | bases
    assert len(wanted) == 32
    assert set(ROWS) == set(TASKS)
    cells = {ROOT / row["config"] for number in KINDS.values() for row in PAPER[number]["rows"]}
    assert cells == wanted


@pytest.mark.parametrize(("model", "method", "task"), CASES)
def test_settings(model, method, task):
    run = read_config(path_of(model, method, task))
    assert set(run) == {"model", "data", "train", "adapter"}
    name = path_of(model, method, task).relative_to(ROOT).as_posix()
    cell = next(row["settings"] for row in PAPER[KINDS[model, method]]["rows"] if row["config"] == name)
    roberta = model == "roberta-base"
    length, warmup, alpha = (128, {"warmup_ratio": 0.1}, 48) if roberta else SCRIPTS[task]
    protocol = "propetl" if roberta else "adalora"
    assert protocol in PROTOCOLS
    assert run["model"] == {"name": "roberta-base" if roberta else "microsoft/deberta-v3-base"}
    assert run["data"] == {"task": task, "protocol": protocol, "dir": None, "max_length": length}
    assert run["train"] == {
        **{setting: cell[setting] for setting in ("epochs", "batch_size", "lr")},
        "weight_decay": 0.1 if roberta else 0.01,
        **warmup,
        "warmup_lr": 0.0,
        "min_lr": 0.0,
        "schedule": "linear",
        "seed": 42,
        "max_grad_norm": 1.0,
        "mixed_precision": "auto",
    }
    adapter = build_run(GlueRun, run).adapter
    assert (adapter.method, adapter.r, adapter.num_tied) == (method, WIDTH[model, method], cell["num_tied"])
    assert adapter.density == cell["density"]
    assert (adapter.density, adapter.mask, adapter.dropout, adapter.init) == (0.5, "random", 0.0, "official")
    assert adapter.alpha == (alpha if method == "lora" else None)
    if method == "lora":
        assert adapter.targets == ("attention-qv" if roberta else "all-linear")


@pytest.mark.parametrize(("model", "method", "task"), CASES)
def test_comments(model, method, task):
    path = path_of(model, method, task)
    command, settings, quoted = path.read_text(encoding="utf-8").splitlines()[:3]
    name = path.relative_to(FOLDER.parents[1]).as_posix()
    assert command == f"# accelerate launch tools/train_glue.py --task {task} --config {name}"
    assert f"Table {KINDS[model, method]} of" in settings
    table = 2 if model == "roberta-base" else 3
    row = "CAPABOOST-LoRA" if method == "lora" else "CAPABOOST-PAdapter"
    scores = next(line["scores"] for line in PAPER[table]["rows"] if line["name"] == row)
    score = {name.lower().replace("-", ""): score for name, score in scores.items()}[task]
    assert quoted.startswith(f"# Quoted from the paper, Table {table}: ")
    assert f" {score['mean']:.2f} ± {score['std']:.1f}, " in quoted


def run_of(model, task, method, *assignments):
    """As `train_glue.py --model MODEL --task TASK --method METHOD` has it."""
    path = glue_config_file(FOLDER, task, model, method)
    return load_run(GlueRun, path, {}, method, list(assignments))


SHARES = {  # percent of the model, biases of adapters included
    ("roberta-base", "prefix"): 0.95,
    ("roberta-base", "lora"): 0.95,
    ("roberta-base", "capaboost-lora"): 0.71,
    ("roberta-base", "padapter"): 0.96,
    ("roberta-base", "capaboost-padapter"): 0.72,
    ("roberta-base", "full"): 100,
    ("roberta-base", "linear"): 0,
    ("microsoft/deberta-v3-base", "lora"): 0.72,
    ("microsoft/deberta-v3-base", "capaboost-lora"): 0.54,
    ("microsoft/deberta-v3-base", "hadapter"): 0.65,
    ("microsoft/deberta-v3-base", "padapter"): 0.65,
    ("microsoft/deberta-v3-base", "capaboost-padapter"): 0.25,
}


@pytest.mark.parametrize(("model", "method"), [row for row in SHARES if row[1].startswith("capaboost")])
def test_the_papers_alpha_is_over_r(model, method):
    adapter = run_of(model, "cola", method).adapter
    assert adapter.scale == (adapter.alpha or adapter.r) / adapter.r


def share(run):
    with torch.device("meta"):
        model = architectures.build(run.model.name)
    return parameter_counts(inject(model, run.adapter)).percent


@pytest.mark.parametrize("task", ["cola", "mnli"])
@pytest.mark.parametrize(("model", "method"), SHARES)
def test_shares_of_every_row_of_tables_2_and_3(model, method, task):
    assert share(run_of(model, task, method)) == pytest.approx(SHARES[model, method], abs=0.0051)


@pytest.mark.parametrize(("method", "percent"), [("lora", 0.16), ("capaboost-lora", 0.12)])
def test_the_other_reading_of_debertas_lora_is_one_word(method, percent):
    run = run_of("microsoft/deberta-v3-base", "rte", method, "adapter.targets=attention-qv")
    assert share(run) == pytest.approx(percent, abs=0.0051)


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        ("roberta-base", "full", (2e-5, 10, 32, None, 0.06)),
        ("roberta-base", "linear", (5e-3, 20, 128, None, 0.1)),
        ("microsoft/deberta-v3-base", "full", (1.5e-5, 6, 64, None, 0.1)),
        ("microsoft/deberta-v3-base", "linear", (5e-3, 20, 128, 1000, 0.1)),
    ],
)
def test_full_and_linear_have_rates_and_epochs_of_their_own(model, method, expected):
    train = run_of(model, "mnli", method).train
    assert (train.lr, train.epochs, train.batch_size, train.warmup_steps, train.warmup_ratio) == expected


def test_hadapter_is_that_of_its_sources():
    adapters = [run_of("microsoft/deberta-v3-base", "rte", method).adapter for method in ("hadapter", "padapter")]
    assert [adapter.activation for adapter in adapters] == ["swish", "relu"]
    assert adapters[0].after_dropout


@pytest.mark.parametrize("number", KINDS.values())
def test_a_bare_grid_is_that_of_the_paper(number):
    rates = parse_rates(train_glue.GRIDS[family_of(PAPER[number]["model"])])
    assert rates == PAPER[number]["lr_grid"]["rates"]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_recipe_that_is_cut_to_two_epochs_reaches_its_rate_and_falls_to_zero(case):
    recipe, cut = (load_run(GlueRun, path_of(*case), flags, None, []) for flags in ({}, {"train": {"epochs": 2}}))
    steps = 1000 if case[-1] in ("mnli", "qqp", "qnli", "sst2") else 45  # of an epoch
    shares = [run.train.schedule_of(run.train.epochs * steps) for run in (recipe, cut)]
    shares = [schedule.warmup_steps / schedule.total_steps for schedule in shares]
    assert shares[1] == pytest.approx(shares[0], abs=1 / (2 * steps))
    curve = [cut.train.schedule_of(2 * steps)(step) for step in range(2 * steps + 1)]
    assert max(curve) == recipe.train.lr
    assert curve[-1] == 0


def test_a_warm_up_that_is_typed_is_taken_as_it_is():
    path = path_of("deberta-v3-base", "lora", "stsb")
    for epochs, typed, steps in ((2, [], 8), (50, [], 200), (1, ["train.warmup_steps=30"], 30), (25, [], 100)):
        assert load_run(GlueRun, path, {"train": {"epochs": epochs}}, None, typed).train.warmup_steps == steps
    assert load_run(GlueRun, path, {}, None, ["train.epochs=1", "train.warmup_steps=null"]).train.warmup_steps is None


OWN_RATES = {
    None: (5e-4, 5e-3),
    "lora": (5e-4, 5e-3),
    "bitfit": (1e-3, 5e-3),
    "linear": (5e-3, None),
    "full": (2e-5, None),
}


@pytest.mark.parametrize("method", OWN_RATES)
def test_the_head_has_the_rate_of_a_probe_on_texts_of_ones_own_alone(method, tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\na,x\nb,y\n")
    flags = ["--model", "some/encoder", *(["--method", method] if method else [])]
    own = ["--data", str(tmp_path / "reviews.csv")]
    typed = [
        "--task",
        "reviews",
        *(f"--set=data.{key}" for key in ("train=reviews.csv", "texts=[text]", "label=label")),
    ]
    for data in (own, [*typed, f"--set=data.dir={tmp_path}", "--set=data.classes=[x, y]"]):
        train = train_glue.load(train_glue.glue_parser().parse_args([*data, *flags])).train
        assert (train.lr, train.head_lr, train.epochs) == (*OWN_RATES[method], 10)
    assert train_glue.load(train_glue.glue_parser().parse_args(["--task", "sst2", *flags])).train.head_lr is None


def test_a_typed_rate_leaves_the_heads_and_what_is_printed_says_both(tmp_path, capsys):
    (tmp_path / "reviews.csv").write_text("text,label\na,x\nb,y\n")
    assert train_glue.main(["--data", str(tmp_path / "reviews.csv"), "--lr", "2e-3", "--print-config"]) == 0
    lines = [line.split("  # ") for line in capsys.readouterr().out.splitlines() if "lr: " in line]
    origin = {name.split(":")[0].strip(): from_ for name, from_ in lines}
    assert (origin["lr"], origin["head_lr"]) == ("a flag", "_own.yaml")
