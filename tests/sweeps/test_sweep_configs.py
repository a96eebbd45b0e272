"""The sweep files of the repository: each can be read, and every one of its runs has settings that hold."""

from pathlib import Path

import pytest

from capaboost.commands import sweep as command
from capaboost.commands import train_glue, train_lm, train_squad, train_vtab
from capaboost.runs.settings import shipped
from capaboost.sweeps.display import all_runs
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.runs import Run, final_runs, groups
from capaboost.sweeps.sweep_file import read_sweep
from tests.sweeps.case import sweep_file

FILES = sorted((shipped("configs") / "sweeps").glob("*.yaml"))
PARSERS = {
    "train-vtab": (train_vtab.vtab_parser, train_vtab.load),
    "train-glue": (train_glue.glue_parser, train_glue.load),
    "train-squad": (train_squad.squad_parser, train_squad.load),
    "train-lm": (train_lm.lm_parser, train_lm.load),
}


def typed(run: Run):
    """The settings that the run's command reads from the flags that its record shows."""
    parser, load = PARSERS[run.command]
    return load(parser().parse_args(run.arguments))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_first_line_runs_it_and_every_run_has_its_settings(path: Path, tmp_path):
    assert path.read_text().startswith(f"# capaboost sweep configs/sweeps/{path.name}\n")
    sweep = read_sweep(path)
    runs = all_runs(sweep, SweepFolder(tmp_path), (1, 1))
    of_groups = {run.group[:2] for run in runs}
    assert of_groups == {(task, method) for task in sweep.tasks for method in sweep.methods}
    for run in {(run.task, run.preset): run for run in runs}.values():  # one of each, since hundreds take long
        settings = run.load()
        assert settings == typed(run)
        assert settings.train.seed == run.seed
        assert settings.train.test != run.tuning
        if run.tuning:
            assert settings.data.protocol == settings.selecting


def test_the_papers_model_brings_the_papers_settings(tmp_path):
    """The settings file is chosen by model and method, as by the command's flags."""
    (path,) = [path for path in FILES if path.stem == "glue-adalora"]
    runs = {run.name: run for run in all_runs(read_sweep(path), SweepFolder(tmp_path), (1, 1))}
    settings = [run.load() for run in (runs["mnli/lora/seed42"], runs["rte/lora/seed42"])]
    assert [s.model.name for s in settings] == ["microsoft/deberta-v3-base"] * 2
    assert [s.data.max_length for s in settings] == [256, 512]
    assert [s.train.warmup_steps for s in settings] == [1000, 200]


def test_settings_are_those_that_the_shown_flags_give():
    """Values of every type, and a model that chooses another recipe."""
    values = {
        "train.lr": 1e-05, "train.weight_decay": 3, "train.mixed_precision": "no", "data.num_classes": None,
        "adapter.targets": ("q", "v"), "adapter.r": 6, "model.kwargs": {"class_token": False, "pre_norm": True},
        "model.name": "test_vit", "model.pretrained": False,
    }  # fmt: skip
    sweep = sweep_file(methods=["capaboost-lora"], vary={name: [value] for name, value in values.items()})
    for group in groups(sweep):
        for run in final_runs(sweep, group, {}):
            assert run.load() == typed(run)
            assert run.load().model.kwargs == values["model.kwargs"]


def test_files_of_texts_are_tasks_of_a_sweep():
    """The command takes a file as its argument; a name of the sweep may stand for one elsewhere."""
    tasks = {"pairs.jsonl": {}, "book": {"task": "texts/book.txt", "data.max_length": 64}}
    sweep = sweep_file(command="train-lm", tasks=tasks, methods=["lora"], set={"model.name": "tiny"})
    runs = [run for group in groups(sweep) for run in final_runs(sweep, group, {})]
    assert [run.arguments[0] for run in runs] == ["pairs.jsonl"] * 2 + ["texts/book.txt"] * 2
    for run in runs:
        assert run.load() == typed(run)
        assert (run.load().data.file, run.load().model.name) == (run.arguments[0], "tiny")


def test_a_shipped_sweep_has_a_name(tmp_path, capsys):
    assert command.main(["digits", "--dry-run", "--speed", "1", "--output-dir", str(tmp_path / "out")]) == 0
    assert "18 runs" in capsys.readouterr().out
