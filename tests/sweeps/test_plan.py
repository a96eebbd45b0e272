"""Tuning: which settings are best, when a grid widens, and what waits for what."""

import pytest

from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from tests.sweeps.case import put_result, sweep_file


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    return SweepFolder(tmp_path)


def tuned_sweep(**tune):
    return sweep_file(methods=["lora"], tune={"grid": {"train.lr": [0.01, 0.03, 0.1]}, **tune})


def score(folder: SweepFolder, **values: float | None) -> None:
    for rate, value in values.items():
        put_result(folder, f"digits/lora/tune/lr={rate.removeprefix('at_')}/seed1", value)


def names(plan) -> list[str]:
    return [run.name for run in plan.runs]


def test_final_runs_wait_for_all_of_their_tuning(folder):
    sweep = tuned_sweep()
    score(folder, **{"at_0.01": 1.0, "at_0.03": 3.0})
    plan = plan_of(sweep, folder)
    assert (len(plan.runs), plan.undecided, plan.tuned) == (3, 2, {})
    score(folder, **{"at_0.1": 2.0})
    plan = plan_of(sweep, folder)
    assert (len(plan.runs), plan.undecided) == (5, 0)
    (tuned,) = plan.tuned.values()
    assert (tuned.values, tuned.at_edge) == ({"train.lr": 0.03}, ())
    assert tuned.grid == {"lr=0.01": 1.0, "lr=0.03": 3.0, "lr=0.1": 2.0}
    assert [run.values["train.lr"] for run in plan.runs if not run.tuning] == [0.03, 0.03]


@pytest.mark.parametrize(
    ("scores", "added"), [((3.0, 2.0, 1.0), "lr=0.0033"), ((1.0, 2.0, 3.0), "lr=0.33"), ((None, None, 1.0), "lr=0.33")]
)
def test_a_grid_whose_best_value_is_at_an_end_goes_on_there(folder, scores, added):
    sweep = tuned_sweep(widen=1)
    score(folder, **dict(zip(("at_0.01", "at_0.03", "at_0.1"), scores, strict=True)))
    plan = plan_of(sweep, folder)
    assert len(plan.runs) == 4
    assert f"digits/lora/tune/{added}/seed1" in names(plan)
    put_result(folder, f"digits/lora/tune/{added}/seed1", 9.0)
    (tuned,) = plan_of(sweep, folder).tuned.values()  # it may not widen again, and says so
    assert (tuned.values["train.lr"], tuned.at_edge) == (float(added.removeprefix("lr=")), ("train.lr",))


def test_without_widening_the_edge_is_told(folder):
    score(folder, **{"at_0.01": 3.0, "at_0.03": 2.0, "at_0.1": 1.0})
    (tuned,) = plan_of(tuned_sweep(widen=0), folder).tuned.values()
    assert (tuned.values, tuned.at_edge) == ({"train.lr": 0.01}, ("train.lr",))


def test_a_grid_of_words_has_no_ends(folder):
    sweep = sweep_file(methods=["lora"], tune={"grid": {"adapter.init": ["lora", "official"]}})
    put_result(folder, "digits/lora/tune/init=lora/seed1", 2.0)
    put_result(folder, "digits/lora/tune/init=official/seed1", 1.0)
    (tuned,) = plan_of(sweep, folder).tuned.values()
    assert (tuned.values, tuned.at_edge) == ({"adapter.init": "lora"}, ())


def test_the_mean_over_the_tuning_seeds_decides_and_whole_numbers_stay_whole(folder):
    sweep = sweep_file(methods=["lora"], tune={"grid": {"adapter.alpha": [4, 8, 16]}, "seeds": [7, 8]})
    for alpha, values in {4: (1.0, 1.0), 8: (9.0, 0.0), 16: (5.0, 6.0)}.items():
        for seed, value in zip((7, 8), values, strict=True):
            put_result(folder, f"digits/lora/tune/alpha={alpha}/seed{seed}", value)
    (wider,) = {run.values["adapter.alpha"] for run in plan_of(sweep, folder).runs} - {4, 8, 16}
    assert (wider, type(wider)) == (32, int)


def test_what_diverged_is_not_chosen_and_another_failure_stops_the_choice(folder):
    sweep = tuned_sweep()
    score(folder, **{"at_0.01": 1.0, "at_0.03": 2.0})
    (run,) = [run for run in plan_of(sweep, folder).runs if folder.is_open(run)]
    folder.fail(run, "the loss is not finite", "diverged", "capaboost train-vtab")
    (tuned,) = plan_of(sweep, folder).tuned.values()
    assert tuned.values == {"train.lr": 0.03}
    assert tuned.grid["lr=0.1"] is None
    folder.fail(run, "no disk", "error", "capaboost train-vtab")
    plan = plan_of(sweep, folder)
    assert (plan.tuned, plan.undecided) == ({}, 2)
