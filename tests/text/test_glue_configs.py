"""The GLUE configurations hold the numbers of Tables 9, 10, 12 and 13, and quote Tables 2 and 3."""

from pathlib import Path

import pytest

from capaboost_core.training.run_config import build_run
from capaboost_core.training.run_file import read_config
from capaboost_text.glue.run import GlueRun
from capaboost_text.glue.splits import PROTOCOLS, TASKS

FOLDER = Path(__file__).parents[2] / "configs" / "glue"
# The row order of the paper's Tables 9, 10, 12, 13: learning rate, epochs. Batch 128, 2 tied layers and density 0.5
# are the same in every row.
ROWS = ("mnli", "rte", "qnli", "mrpc", "qqp", "sst2", "cola", "stsb")
SETTINGS = {
    ("roberta-base", "lora"): (
        (5e-4, 20), (6e-4, 40), (5e-4, 10), (5e-4, 40), (5e-4, 20), (1e-4, 20), (5e-4, 40), (5e-4, 20),
    ),
    ("roberta-base", "padapter"): (
        (1e-3, 10), (1e-3, 40), (2e-3, 10), (3e-4, 30), (1e-3, 10), (1e-3, 10), (5e-4, 20), (1e-3, 20),
    ),
    ("deberta-v3-base", "lora"): (
        (5e-4, 20), (2e-3, 50), (1e-3, 15), (3e-3, 50), (5e-4, 20), (3e-4, 25), (5e-4, 15), (5e-4, 25),
    ),
    ("deberta-v3-base", "padapter"): (
        (5e-4, 20), (1.5e-3, 50), (5e-3, 20), (5e-3, 50), (1e-3, 30), (3e-4, 10), (3e-4, 10), (1e-3, 20),
    ),
}  # fmt: skip
# The column order of Tables 2 and 3, and their CapaBoost rows.
COLUMNS = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")
RESULTS = {
    ("roberta-base", "lora"): (
        "63.74 ± 0.6,94.19 ± 0.1,88.24 ± 0.0,90.88 ± 0.1,91.52 ± 0.2,87.40 ± 0.3,92.60 ± 0.2,75.06 ± 2.4"
    ),
    ("roberta-base", "padapter"): (
        "66.88 ± 0.5,94.50 ± 0.5,89.38 ± 1.2,91.13 ± 0.0,91.09 ± 0.1,87.30 ± 0.1,92.59 ± 0.2,77.94 ± 2.4"
    ),
    ("deberta-v3-base", "lora"): (
        "72.22 ± 2.2,95.80 ± 0.4,91.42 ± 1.0,91.68 ± 0.0,91.99 ± 0.1,91.10 ± 0.0,93.83 ± 0.2,86.64 ± 0.3"
    ),
    ("deberta-v3-base", "padapter"): (
        "73.13 ± 1.0,96.22 ± 0.2,92.16 ± 1.2,92.26 ± 0.0,92.37 ± 0.2,90.12 ± 0.1,94.12 ± 0.1,87.05 ± 1.8"
    ),
}
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
CASES = [(model, method, task) for model, method in SETTINGS for task in ROWS]


def path_of(model, method, task):
    return FOLDER / model / f"{task}-{method}.yaml"


def test_there_is_a_file_for_each_case():
    wanted = {path_of(*case) for case in CASES}
    bases = {FOLDER / "_base.yaml", *(FOLDER / model / "_base.yaml" for model, _ in SETTINGS)}
    assert set(FOLDER.rglob("*.yaml")) == wanted | bases
    assert len(wanted) == 32
    assert set(ROWS) == set(COLUMNS) == set(TASKS)


@pytest.mark.parametrize(("model", "method", "task"), CASES)
def test_settings(model, method, task):
    run = read_config(path_of(model, method, task))
    assert set(run) == {"model", "data", "train", "adapter"}
    lr, epochs = SETTINGS[model, method][ROWS.index(task)]
    roberta = model == "roberta-base"
    length, warmup, alpha = (128, {"warmup_ratio": 0.1}, 48) if roberta else SCRIPTS[task]
    protocol = "propetl" if roberta else "adalora"
    assert protocol in PROTOCOLS
    assert run["model"] == {"name": "roberta-base" if roberta else "microsoft/deberta-v3-base"}
    assert run["data"] == {"task": task, "protocol": protocol, "dir": None, "max_length": length}
    assert run["train"] == {
        "epochs": epochs,
        "batch_size": 128,
        "lr": lr,
        "weight_decay": 0.1 if roberta else 0.01,
        **warmup,
        "warmup_lr": 0.0,
        "min_lr": 0.0,
        "schedule": "linear",
        "seed": 42,
        "max_grad_norm": 1.0,
        "mixed_precision": "fp16",
    }
    adapter = build_run(GlueRun, run).adapter
    assert (adapter.method, adapter.r, adapter.num_tied) == (method, WIDTH[model, method], 2)
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
    number = {"roberta-base": 9, "deberta-v3-base": 12}[model] + (method == "padapter")
    assert f"Table {number} of" in settings
    table = 2 if model == "roberta-base" else 3
    result = RESULTS[model, method].split(",")[COLUMNS.index(task)]
    assert quoted.startswith(f"# Quoted from the paper, Table {table}: ")
    assert f" {result}, " in quoted
