"""Tuning: which settings are best, when a grid widens, and what waits for what."""

import json
from collections import Counter

import pytest

from capaboost.sweeps import sweep_file as sweep_file_module
from capaboost.sweeps.driver import unequal_trials
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from tests.sweeps.case import put_result, sweep_file


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    return SweepFolder(tmp_path)


def tuned_sweep(**tune):
    return sweep_file(methods=["lora"], tune={"grid": {"train.lr": [0.01, 0.03, 0.1]}, **tune})


def score(folder: SweepFolder, metric: str = "accuracy", **values: float | None) -> None:
    for rate, value in values.items():
        put_result(folder, f"digits/lora/tune/lr={rate.removeprefix('at_')}/seed1", value, metric)


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


def test_of_perplexity_the_lowest_is_best(folder):
    score(folder, "selection_perplexity", **{"at_0.01": 30.0, "at_0.03": 20.0, "at_0.1": None})
    (tuned,) = plan_of(tuned_sweep(), folder).tuned.values()
    assert (tuned.values, tuned.grid["lr=0.03"]) == ({"train.lr": 0.03}, 20.0)


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


def test_unequal_trials_are_said(folder):
    sweep = sweep_file(methods=["linear", "lora"], tune={"grid": {"train.lr": [0.01, 0.03, 0.1]}, "widen": 1})
    for method, values in {"linear": (1.0, 2.0, 1.0), "lora": (1.0, 2.0, 3.0)}.items():
        for rate, value in zip((0.01, 0.03, 0.1), values, strict=True):
            put_result(folder, f"digits/{method}/tune/lr={rate}/seed1", value)
    assert unequal_trials(plan_of(sweep, folder)) == []  # one is still open
    put_result(folder, "digits/lora/tune/lr=0.33/seed1", 0.0)
    (line,) = unequal_trials(plan_of(sweep, folder))
    assert line.startswith("digits: tuned by unequal trials, linear 3, lora 4;")


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


def put_with_loss(folder: SweepFolder, rate: str, value: float, loss: float) -> None:
    place = f"digits/lora/tune/lr={rate}/seed1"
    put_result(folder, place, value)
    path = folder.path / place / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"val200_loss": loss}}))


@pytest.mark.parametrize(
    ("losses", "chosen"), [((3.0, 1.0, 2.0), 0.03), ((3.0, 2.0, 1.0), 0.1), ((1.0, 1.0, 2.0), 0.01)]
)
def test_of_equal_means_the_lowest_loss_decides_then_the_first(folder, losses, chosen):
    for rate, loss in zip(("0.01", "0.03", "0.1"), losses, strict=True):
        put_with_loss(folder, rate, 5.0, loss)
    (tuned,) = plan_of(tuned_sweep(widen=0), folder).tuned.values()
    assert tuned.values == {"train.lr": chosen}
    assert tuned.to_dict()["tied"] == dict(zip(("lr=0.01", "lr=0.03", "lr=0.1"), losses, strict=True))


def test_a_higher_mean_beats_a_lower_loss_and_no_tie_is_noted(folder):
    for rate, value, loss in (("0.01", 4.0, 1.0), ("0.03", 5.0, 9.0), ("0.1", 4.0, 1.0)):
        put_with_loss(folder, rate, value, loss)
    (tuned,) = plan_of(tuned_sweep(), folder).tuned.values()
    assert tuned.values == {"train.lr": 0.03}
    assert "tied" not in tuned.to_dict()


@pytest.mark.parametrize(
    ("scores", "added"),
    [
        ((3.0, 2.0, 1.0), ["0.0033", "0.0011"]),  # at an end: on past it
        ((1.0, 2.0, 3.0), ["0.33", "1.1"]),
        ((1.0, 3.0, 2.0), ["0.0033", "0.33"]),  # in the middle: past the lower end, then past the other, now nearer
    ],
)
def test_with_trials_every_method_tries_as_many_values(folder, scores, added):
    sweep = tuned_sweep(trials=5)
    score(folder, **dict(zip(("at_0.01", "at_0.03", "at_0.1"), scores, strict=True)))
    for count, rate in enumerate(added, start=4):
        plan = plan_of(sweep, folder)
        assert (len(plan.runs), plan.tuned) == (count, {})
        assert f"digits/lora/tune/lr={rate}/seed1" in names(plan)
        score(folder, **{f"at_{rate}": 0.0})
    (tuned,) = plan_of(sweep, folder).tuned.values()
    assert tuned.values["train.lr"] == (0.01, 0.03, 0.1)[scores.index(3.0)]
    assert len(tuned.grid) == 5


@pytest.mark.parametrize("more", [{}, {"seeds_at_best": [3, 4]}, {"mask_seed": "run"}])
def test_the_operations_of_a_plan_are_in_proportion_to_its_runs(folder, monkeypatch, more):
    """Names that are made and files that are looked at, of four and of sixteen times as many runs."""
    counts = Counter()

    def counted(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (counts.update([name]), real(*given))[1])

    counted(sweep_file_module, "plain")
    counted(SweepFolder, "is_done")
    found = []
    for cells in (5, 20, 80):
        rates = [float(rate) for rate in range(1, cells + 1)]
        sweep = sweep_file(methods=["lora", "linear"], seeds=[1], vary={"train.lr": rates}, **more)
        counts.clear()
        assert len(plan_of(sweep, folder).runs) == 2 * cells
        found.append(counts.total() / cells)
        plan_of(sweep, folder)
        assert counts["plain"] == cells  # the names are made once
    assert max(found) <= 1.5 * min(found)
