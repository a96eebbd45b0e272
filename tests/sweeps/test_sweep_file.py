"""Sweep files: what they say, and the one line for each mistake."""

import json
import re

import pytest

from capaboost.commands import sweep as command
from capaboost.sweeps.display import all_runs
from capaboost.sweeps.estimate import Estimator
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.runs import final_runs, groups, tuning_runs
from capaboost_core import settings as yaml_file
from tests.sweeps.case import sweep_file, write_file


def test_every_combination_is_a_run_of_its_own_folder(tmp_path):
    methods = {"linear": {}, "wide": {"preset": "lora", "adapter.r": 16}}
    sweep = sweep_file(methods=methods, vary={"train.batch_size": [32, 64], "adapter.seed": [0]}, seeds=[1, 2, 3])
    runs = all_runs(sweep, SweepFolder(tmp_path), (1, 1))
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * 3
    assert "digits/wide/batch_size=32,seed=0/seed2" in {run.name for run in runs}
    (run,) = [run for run in runs if run.name == "digits/wide/batch_size=64,seed=0/seed3"]
    settings = run.load()
    assert (settings.adapter.label, settings.adapter.r, settings.train.seed) == ("lora", 16, 3)
    assert (settings.train.batch_size, settings.train.epochs, settings.model.name) == (64, 2, "test_vit")
    assert settings.train.test


def test_tuning_runs_leave_the_test_rows_unseen_and_final_runs_have_what_was_chosen():
    sweep = sweep_file(tune={"grid": {"train.lr": [1e-3, 1e-2], "adapter.alpha": [8, 16]}}, methods=["lora"])
    (group,) = groups(sweep)
    runs = tuning_runs(sweep, group, sweep.tune.grid)
    assert [run.name for run in runs][:2] == [
        "digits/lora/tune/lr=0.001,alpha=8/seed1", "digits/lora/tune/lr=0.001,alpha=16/seed1"
    ]  # fmt: skip
    settings = [run.load() for run in runs]
    assert {(s.train.lr, s.adapter.alpha) for s in settings} == {(1e-3, 8), (1e-3, 16), (1e-2, 8), (1e-2, 16)}
    assert {(s.train.test, s.data.protocol, s.train.seed) for s in settings} == {(False, "select", 1)}
    assert {s.train.select for s in settings} == {"last"}
    final = [r.load() for r in final_runs(sweep, group, {"train.lr": 1e-2})]
    assert [(s.train.lr, s.train.test, s.data.protocol, s.train.seed) for s in final] == [
        (1e-2, True, "test", 1), (1e-2, True, "test", 2)
    ]  # fmt: skip


def test_tuning_may_judge_the_best_epoch():
    sweep = sweep_file(tune={"grid": {"train.lr": [1e-3, 1e-2]}, "epoch": "best"}, methods=["lora"])
    (group,) = groups(sweep)
    runs = tuning_runs(sweep, group, sweep.tune.grid)
    assert {run.load().train.select for run in runs} == {None}


def test_masks_move_with_the_seed_of_the_run_where_a_method_has_them():
    methods = {"lora": {}, "tied": {"preset": "capaboost-lora"}, "dropout": {"preset": "capaboost-lora",
               "adapter.mask": "dropout"}, "vera": {}, "linear": {}, "wide": {"preset": "lora", "adapter.num_tied": 4,
               "adapter.density": 0.5}}  # fmt: skip
    seeds = {}
    for name, group in zip(methods, groups(sweep_file(methods=methods)), strict=True):
        for sweep in (sweep_file(methods=methods), sweep_file(methods=methods, mask_seed="run")):
            settings = [run.load().adapter for run in final_runs(sweep, group, {})]
            seeds.setdefault(name, []).append([getattr(adapter, "seed", 0) for adapter in settings])
    fixed = [[0, 0], [0, 0]]
    moved = [[0, 0], [1, 2]]
    assert seeds == dict(lora=fixed, tied=moved, dropout=fixed, vera=moved, linear=fixed, wide=moved)


@pytest.mark.parametrize("tune", [{"trials": 3}, {"widen": 1}, {"epoch": "best"}, {}])
def test_workers_read_the_sweep_that_was_written(tune, tmp_path):
    sweep = sweep_file(tune={"grid": {"train.lr": [1e-3, 1e-2]}, **tune}, mask_seed="run")
    folder = SweepFolder(tmp_path)
    folder.write_sweep(sweep)
    assert folder.sweep() == sweep


def test_a_task_may_have_a_name_of_its_own(tmp_path):
    tasks = {"small": {"task": "digits", "model.img_size": 32}, "digits": {}}
    runs = all_runs(sweep_file(tasks=tasks, methods=["linear"], seeds=[1]), SweepFolder(tmp_path), (1, 1))
    settings = {run.name: run.load() for run in runs}
    assert {name: s.model.img_size for name, s in settings.items()} == {
        "small/linear/seed1": 32, "digits/linear/seed1": None
    }  # fmt: skip
    assert {s.data.dataset for s in settings.values()} == {"digits"}


def test_shards_share_the_groups_out(tmp_path):
    sweep = sweep_file(tasks={name: {"task": "digits"} for name in "abc"}, tune={"grid": {"train.lr": [1e-3, 1e-2]}})
    whole = {run.name for run in all_runs(sweep, SweepFolder(tmp_path), (1, 1))}
    parts = [{run.name for run in all_runs(sweep, SweepFolder(tmp_path), (i, 4))} for i in range(1, 5)]
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": "train"}, "command is 'train'"),
        ({"seeds": []}, "seeds is"),
        ({"seeds": [1, 1]}, "a seed twice"),
        ({"seeds": 3}, "seeds is 3; type a list of whole numbers"),
        ({"methods": 5}, "methods is 5; type names with values, such as [lora, capaboost-lora]"),
        ({"tune": 3}, "tune is 3; type names with values, such as {grid: {train.lr: [1e-3, 1e-2]}}"),
        ({"tune": {"grid": {"train.lr": 3}}}, "tune.grid is {'train.lr': 3}; type names with values"),
        ({"vary": {"train.lr": [0.1, 0.1]}}, "vary.train.lr must list one or more different values"),
        ({"vary": {"train.lr": []}}, "vary.train.lr must list one or more different values"),
        ({"budget": "3 apples"}, "budget is '3 apples'; type a number of parameters"),
        ({"budget": "300%"}, "a budget of 300%: type a number above 0, up to 100"),
        ({"tasks": ["digts"]}, "digts/linear/seed1: VTAB-1k has no task 'digts'"),
        ({"sedes": [1]}, "unknown key of a sweep file sedes; did you mean seeds?"),
        ({"methods": {"a/b": {}}}, "without slashes"),
        ({"set": {"epochs": 2}}, "'epochs' is not of the form section.key"),
        ({"set": {"train.seed": 2}}, "the sweep sets train.seed itself"),
        ({"tune": {"grid": {"train.lr": [1e-3]}}}, "two or more different values"),
        ({"tune": {"grid": {"train.lr": [1, 2]}, "widn": 1}}, "unknown setting tune.widn; did you mean tune.widen?"),
        ({"tune": {"grid": {"train.lr": [1e-3, 1e-2]}, "widen": -1}}, "tune.widen is -1"),
        (
            {"tune": {"grid": {"train.lr": [1, 2]}, "widen": 1, "trials": 3}},
            "tune.trials takes the place of tune.widen",
        ),
        ({"tune": {"grid": {"train.lr": [1, 2, 4]}, "trials": 2}}, "tune.trials is 2; it needs a grid of one setting"),
        ({"tune": {"grid": {"adapter.init": ["lora", "official"]}, "trials": 2}}, "of at most so many numbers"),
        ({"set": {"adapter.seed": 1}, "mask_seed": "run"}, "mask_seed: run sets adapter.seed itself"),
        ({"set": {"data.source": "digits", "data.selection_rows": 9}}, "data.selection_rows is 9; leave it out"),
        ({"methods": ["lroa"]}, "digits/lroa/seed1: unknown preset 'lroa'"),
        ({"set": {"train.epocs": 2}}, "digits/linear/seed1: unknown setting train.epocs; did you mean train.epochs?"),
        ({"methods": {"lora": {"adapter.r": 0}}}, "digits/lora/seed1: adapter.r is 0"),
        ({"tune": {"grid": {"train.lr": [1, 0]}}}, "train.lr is 0"),
        ({"set": {"model.name": "test_vit", "model.weights": "none.pth"}}, "model.weights: none.pth does not exist"),
        ({"set": {"data.source": "folder", "data.dir": "none"}}, "data.dir: none does not exist, seen from "),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(changes, message, tmp_path, capsys):
    values = sweep_file().to_dict() | {"set": {}, "tune": None} | changes
    (tmp_path / "sweep.yaml").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    assert command.main([str(tmp_path / "sweep.yaml"), "--output-dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus-per-run", "0.5"], "--gpus-per-run belongs to --engine ray or slurm"),
        (["--engine", "ray", "--slurm", "a=1"], "--slurm belongs to --engine slurm"),
        (["--engine", "slurm", "--slurm", "timeout"], "not of the form KEY=VALUE"),
    ],
)
def test_a_flag_of_another_engine_is_refused(flags, message, tmp_path, capsys):
    file = write_file(tmp_path / "sweep.yaml")
    assert command.main([str(file), "--output-dir", str(tmp_path / "out"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b"])
def test_a_wrong_shard_is_refused(shard, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "--shard", shard])
    assert "is not of the form I/N" in capsys.readouterr().err


def test_a_dry_run_lists_every_run_and_the_total_and_writes_nothing(tmp_path, capsys):
    file = write_file(tmp_path / "sweep.yaml", tune={"grid": {"train.lr": [1e-3, 1e-2]}})
    flags = ["--dry-run", "--speed", "0.001", "--output-dir", str(tmp_path / "out")]
    assert command.main([str(file), *flags]) == 0
    out = capsys.readouterr().out
    for name in ("digits/linear/tune/lr=0.01/seed1", "digits/lora/tune/lr=0.001/seed1", "digits/lora/seed2"):
        assert name in out
    assert "8 runs" in out
    total, left = re.search(
        r"8 runs, (.+) one after another, of which (.+) are left .+; .+ of it to start$", out
    ).groups()
    assert total == left
    assert not (tmp_path / "out").exists()


def test_a_file_of_settings_is_parsed_once_for_all_runs(tmp_path, monkeypatch):
    parsed = []
    real = yaml_file.yaml.load
    monkeypatch.setattr(yaml_file.yaml, "load", lambda text, loader: (parsed.append(text), real(text, loader))[1])
    yaml_file._parsed.cache_clear()
    runs = all_runs(sweep_file(seeds=list(range(20))), SweepFolder(tmp_path), (1, 1))
    estimator = Estimator(SweepFolder(tmp_path), 1e9)
    assert {estimator.settings_of(run).train.seed for run in runs} == set(range(20))
    assert len(parsed) == len(set(parsed))


def test_what_changes_no_product_is_counted_once(tmp_path):
    values = {"adapter.alpha": [4, 64], "adapter.scaling": ["stable", "alpha-r"], "adapter.r": [2, 4]}
    runs = all_runs(sweep_file(methods=["lora"], seeds=[1], vary=values), SweepFolder(tmp_path), (1, 1))
    together = Estimator(SweepFolder(tmp_path), 1e9)
    works = [together.work(run) for run in runs]
    assert works == [Estimator(SweepFolder(tmp_path), 1e9).work(run) for run in runs]
    assert len(runs) == 8
    assert len(together.steps) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("bensh", "did you mean bench?"), ("of/mine.yaml", ", bench, ")],
)
def test_a_name_that_is_no_sweep_is_refused(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"there is no file {name}, and no shipped sweep of this name" in line
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_file_where_the_claims_go_is_refused(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "claims").write_text("")
    file = write_file(tmp_path / "sweep.yaml")
    assert command.main([str(file), "--output-dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "claims must be a folder" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["claims"]


@pytest.mark.parametrize("speed", ["0", "-1", "inf", "fast"])
def test_a_speed_is_above_zero(speed, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "--dry-run", "--speed", speed])
    assert "is not a number above 0" in capsys.readouterr().err
