"""The sweep files of the repository: each can be read, and every one of its runs has settings that hold."""

from pathlib import Path

import pytest

from capaboost.commands import sweep as command
from capaboost.shipped import shipped
from capaboost.sweeps.display import all_runs
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.sweep_file import read_sweep
from capaboost.sweeps.work import command_of, options_of

FILES = sorted((shipped("configs") / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_first_line_runs_it_and_every_run_has_its_settings(path: Path, tmp_path):
    assert path.read_text().startswith(f"# capaboost sweep configs/sweeps/{path.name}\n")
    sweep = read_sweep(path)
    runs = all_runs(sweep, SweepFolder(tmp_path), (1, 1))
    of_groups = {run.group[:2] for run in runs}
    assert of_groups == {(task, method) for task in sweep.tasks for method in sweep.methods}
    for run in {(run.task, run.preset): run for run in runs}.values():  # one of each, since hundreds take long
        settings = command_of(run).load(options_of(run))
        assert settings.train.seed == run.seed
        assert settings.train.test != run.tuning
        if run.tuning:
            assert settings.data.protocol == settings.selecting


def test_the_papers_model_brings_the_papers_settings(tmp_path):
    """The settings file is chosen by model and method, as by the command's flags."""
    (path,) = [path for path in FILES if path.stem == "glue-adalora"]
    runs = {run.name: run for run in all_runs(read_sweep(path), SweepFolder(tmp_path), (1, 1))}
    settings = [command_of(run).load(options_of(run)) for run in (runs["mnli/lora/seed42"], runs["rte/lora/seed42"])]
    assert [s.model.name for s in settings] == ["microsoft/deberta-v3-base"] * 2
    assert [s.data.max_length for s in settings] == [256, 512]
    assert [s.train.warmup_steps for s in settings] == [1000, 200]


def test_a_shipped_sweep_has_a_name(tmp_path, capsys):
    assert command.main(["digits", "--dry-run", "--speed", "1", "--output-dir", str(tmp_path / "out")]) == 0
    assert "18 runs" in capsys.readouterr().out
