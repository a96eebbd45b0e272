"""A run from settings to result.json, and a grid of learning rates, on a toy task."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from capaboost.training.experiment import TaskSetup, run_experiment
from capaboost.training.run_folder import claim
from capaboost.training.settings import TrainSection
from capaboost.training.tuning import parse_rates, run_grid
from capaboost_core import CapaBoostConfig, UserError, inject
from capaboost_core.plan import Plan, Target
from capaboost_core.settings import Settings
from tests.core.toy_run import Toy, model, settings


class Model(Settings):
    name: str = "toy"


class Data(Settings):
    protocol: str = "select"


@dataclass(frozen=True)
class Run:
    model: Model
    data: Data
    train: TrainSection
    adapter: CapaBoostConfig
    selecting = "select"


class Scored(Toy):
    def fingerprint(self):
        return "of its rows"

    def test(self, model):
        return {"score": self.evaluate(model)["score"], "other": 1.0}


def make(protocol="select", **changes) -> Run:
    return Run(Model(), Data(protocol=protocol), settings(**changes), CapaBoostConfig(r=2))


def prepare(run, accelerator):
    network = inject(model(), run.adapter, Plan((Target("0"),), ("3",)))
    task = Scored(accelerator.device, run.train.batch_size)
    return TaskSetup(network, task, "toy-task", metric="score", select_by="score", split_note="all rows")


def worse_each_epoch(run, accelerator):
    class Worse(Scored):
        def evaluate(self, model):
            self.evaluations += 1
            return {"score": -self.evaluations}

    setup = prepare(run, accelerator)
    return dataclasses.replace(setup, task=Worse(accelerator.device, run.train.batch_size))


def test_the_result_tells_the_run(tmp_path):
    result = run_experiment(make(), tmp_path / "run", False, prepare)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert (result["task"], result["model"], result["method"]) == ("toy-task", "toy", "capaboost-lora")
    assert (result["metric"], result["value"]) == ("score", result["test_metrics"]["score"])
    assert result["test_metrics"]["other"] == 1.0
    assert result["data_hash"] == "of its rows"
    assert len(result["weights_hash"]) == 16
    assert result["versions"]["capaboost"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["score"])
    assert (result["selected_by"], result["selected_epoch"]) == ("score", best["epoch"])
    assert result["value"] == pytest.approx(best["score"])
    assert result["config"]["train"]["mixed_precision"] == "no"


def test_a_run_may_end_with_its_last_epoch_where_another_one_is_best(tmp_path):
    result = run_experiment(make(select="last"), tmp_path, False, worse_each_epoch)
    assert (result["selected_by"], result["selected_epoch"], result["metrics"]["score"]) == ("score", 4, -4)
    assert run_experiment(make(), tmp_path / "best", False, worse_each_epoch)["selected_epoch"] == 1


def test_the_last_epoch_counts_where_the_protocol_selects_none(tmp_path):
    result = run_experiment(make("test"), tmp_path, False, prepare)
    assert (result["selected_by"], result["selected_epoch"]) == (None, 4)


def test_a_grid_keeps_the_best_rate_and_survives_a_diverging_one(tmp_path, capsys):
    rates = [1e-6, 0.05, 1e30]
    result = run_grid(make(max_grad_norm=None), rates, tmp_path, False, prepare)
    judged = result["lr_grid"]
    assert judged["1e+30"] is None
    assert "1e+30 is left out" in capsys.readouterr().out
    assert judged["0.05"] > judged["1e-06"]
    assert result["config"]["train"]["lr"] == 0.05
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert json.loads((tmp_path / "lr-0.05" / "result.json").read_text())["value"] == result["value"]
    again = run_grid(make(max_grad_norm=None), rates, tmp_path, True, prepare)
    assert again["lr_grid"] == judged


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.hard_case(27)
def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    result = run_experiment(make(), tmp_path, False, prepare)
    before = contents(tmp_path)

    def no_more(run, accelerator):
        raise AssertionError("nothing is prepared")

    assert run_experiment(make(), tmp_path, True, no_more) == result
    (tmp_path / "checkpoint.pt").unlink()  # not needed any more
    assert run_experiment(make(), tmp_path, True, no_more) == result
    assert contents(tmp_path) == {path: kept for path, kept in before.items() if path.name != "checkpoint.pt"}
    assert "finished already; its result stands" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train\.lr: 0\.05 there, 0\.1 here"):
        run_experiment(make(lr=0.1), tmp_path, True, no_more)


@pytest.mark.hard_case(27)
def test_a_finished_grid_is_left_as_it_is_and_can_grow(tmp_path):
    result = run_grid(make(), [0.01, 0.05], tmp_path, False, prepare)
    before = contents(tmp_path)
    assert run_grid(make(), [0.05, 0.01], tmp_path, True, prepare) == result
    assert contents(tmp_path) == before
    assert set(run_grid(make(), [0.01, 0.05, 0.1], tmp_path, True, prepare)["lr_grid"]) == {"0.01", "0.05", "0.1"}
    after = contents(tmp_path)
    assert {path: after[path] for path in before if path.parent != tmp_path} == {
        path: kept for path, kept in before.items() if path.parent != tmp_path
    }


@pytest.mark.hard_case(4)
def test_a_folder_in_use_is_refused_before_anything_is_prepared(tmp_path):
    def no_more(run, accelerator):
        raise AssertionError("nothing is prepared")

    with claim(tmp_path / "run"), pytest.raises(UserError, match="in use by process"):
        run_experiment(make(), tmp_path / "run", False, no_more)
    assert not (tmp_path / "run").exists()


def test_a_grid_refuses_before_it_writes(tmp_path):
    with pytest.raises(UserError, match="pass --protocol select"):
        run_grid(make("test"), [0.1], tmp_path / "new", False, prepare)
    assert not (tmp_path / "new").exists()
    run_experiment(make(lr=0.1), tmp_path / "lr-0.1", False, prepare)
    with pytest.raises(UserError, match="holds a run already"):
        run_grid(make(), [0.2, 0.1], tmp_path, False, prepare)
    assert not (tmp_path / "lr-0.2").exists()
    with pytest.raises(UserError, match=r"min_lr is 0\.01; type at most train\.lr = 0\.001"):
        run_grid(make(min_lr=0.01), [0.1, 0.001], tmp_path / "low", False, prepare)
    assert not (tmp_path / "low").exists()
    with pytest.raises(UserError, match="diverged at every rate"):
        run_grid(make(max_grad_norm=None), [1e30], tmp_path / "bad", False, prepare)


def test_rates_are_read_or_refused():
    assert parse_rates("1e-4,5e-4,1e-4") == [1e-4, 5e-4]
    for text in ("", "fast", "1e-3,0", "1e-3,nan"):
        with pytest.raises(UserError, match="--lr-grid"):
            parse_rates(text)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 10), ({"warmup_ratio": 0.25}, 25), ({"warmup_steps": 7}, 7), ({"warmup_steps": 0}, 0)],
)
def test_the_warmup_is_a_share_unless_it_is_set_in_steps(changes, steps):
    assert TrainSection(**changes).schedule_of(100).warmup_steps == steps


def test_a_warmup_longer_than_the_run_is_refused():
    assert TrainSection(warmup_ratio=0.99).schedule_of(10).warmup_steps == 9
    with pytest.raises(UserError, match=r"train\.warmup_steps is 100; type a number below the run's 100 steps"):
        TrainSection(warmup_steps=100).schedule_of(100)


def test_a_divergence_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"lower train\.lr"):
        run_experiment(make(lr=1e30, max_grad_norm=None), tmp_path, False, prepare)
    assert not list(tmp_path.iterdir())


def test_a_tuning_run_leaves_the_test_rows_unseen(tmp_path):
    class Unseen(Scored):
        def test(self, model):
            raise AssertionError("the test rows were looked at")

    def unseen(run, accelerator):
        setup = prepare(run, accelerator)
        return dataclasses.replace(setup, task=Unseen(accelerator.device, run.train.batch_size), metric="tested")

    result = run_experiment(make(test=False), tmp_path / "run", False, unseen)
    assert (result["metric"], result["value"]) == ("score", result["metrics"]["score"])
    assert result["split_note"] == "all rows; not tested"
    with pytest.raises(UserError, match=r"train\.test=false leaves protocol all no value; pass --protocol select"):
        run_experiment(make("all", test=False), tmp_path / "other", False, unseen)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "edit", [lambda r: [r], lambda r: r.pop("config"), lambda r: r | {"config": 3}, lambda r: r | {"value": "9"}]
)
def test_a_result_that_somebody_edited_is_one_line(tmp_path, edit):
    result = run_experiment(make(epochs=1), tmp_path, False, prepare)
    (tmp_path / "result.json").write_text(json.dumps(edit(result)))
    with pytest.raises(UserError, match="delete it to run its task again"):
        run_experiment(make(epochs=1), tmp_path, True, prepare)
