"""A run from settings to result.json, and a grid of learning rates, on a toy task."""

import json
from dataclasses import dataclass

import pytest
from accelerate.state import AcceleratorState, GradientState

from capaboost_core import CapaBoostConfig, UserError, inject
from capaboost_core.plan import Plan, Target
from capaboost_core.settings import Settings
from capaboost_core.training.experiment import Prepared, run_experiment
from capaboost_core.training.lr_grid import parse_rates, run_grid
from capaboost_core.training.train_section import TrainSection
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
    def test(self, model):
        return {"score": self.evaluate(model)["score"], "other": 1.0}


def make(protocol="select", **changes) -> Run:
    return Run(Model(), Data(protocol=protocol), settings(**changes), CapaBoostConfig(r=2))


def prepare(run, accelerator):
    network = inject(model(), run.adapter, Plan((Target("0"),), ("3",)))
    task = Scored(accelerator.device, run.train.batch_size)
    return Prepared(network, task, "toy-task", metric="score", select_by="score", split_note="all rows")


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_the_result_tells_the_run(tmp_path):
    result = run_experiment(make(), tmp_path / "run", False, prepare)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert (result["task"], result["model"], result["method"]) == ("toy-task", "toy", "capaboost-lora")
    assert (result["metric"], result["value"]) == ("score", result["test_metrics"]["score"])
    assert result["test_metrics"]["other"] == 1.0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["score"])
    assert (result["selected_by"], result["selected_epoch"]) == ("score", best["epoch"])
    assert result["value"] == pytest.approx(best["score"])
    assert result["config"]["train"]["mixed_precision"] == "no"


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
    assert not (tmp_path / "result.json").exists()
