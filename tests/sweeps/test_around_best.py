"""`seeds_at_best`: which cells of a map get more seeds, and when."""

import pytest

from capaboost.sweeps.display import list_runs
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from capaboost_core.errors import UserError
from tests.sweeps.case import put_result, sweep_file

ALPHAS, RATES = (8, 16, 32, 64), (0.01, 0.02, 0.03)


def mapped_sweep(**changes):
    vary = {"adapter.alpha": list(ALPHAS), "train.lr": list(RATES)}
    return sweep_file(**{"methods": ["lora", "dora"], "seeds": [1], "seeds_at_best": [2, 3], "vary": vary} | changes)


def measure(folder: SweepFolder, method: str, best: tuple[int, float] | None, task: str = "digits") -> None:
    for alpha in ALPHAS:
        for rate in RATES:
            value = None if best is None else float((alpha, rate) == best)
            put_result(folder, f"{task}/{method}/alpha={alpha},lr={rate}/seed1", value)


def later(plan) -> set[str]:
    return {run.name for run in plan.runs if run.seed != 1}


@pytest.mark.parametrize(
    ("best", "alphas", "rates"),
    [
        ((16, 0.02), (8, 16, 32), RATES),
        ((8, 0.01), (8, 16), (0.01, 0.02)),
        ((64, 0.02), (32, 64), RATES),
        ((32, 0.03), (16, 32, 64), (0.02, 0.03)),
    ],
)
def test_the_best_cell_of_each_method_and_those_around_it_get_more_seeds(tmp_path, best, alphas, rates):
    folder = SweepFolder(tmp_path)
    measure(folder, "lora", best)
    plan = plan_of(mapped_sweep(), folder)
    assert later(plan) == {
        f"digits/lora/alpha={alpha},lr={rate}/seed{seed}" for alpha in alphas for rate in rates for seed in (2, 3)
    }
    assert plan.undecided == 2 * 9  # dora's, whose map is not known yet


def test_they_wait_for_the_whole_map_and_a_cell_that_diverged_belongs_to_it(tmp_path):
    folder = SweepFolder(tmp_path)
    sweep = mapped_sweep(methods=["lora"])
    measure(folder, "lora", (16, 0.02))
    (last,) = [run for run in plan_of(sweep, folder).runs if run.name.endswith("alpha=64,lr=0.03/seed1")]
    (folder.place(last) / "result.json").unlink()
    assert (later(plan_of(sweep, folder)), plan_of(sweep, folder).undecided) == (set(), 18)
    folder.fail(last, "no disk", "error", "")
    assert (later(plan_of(sweep, folder)), plan_of(sweep, folder).undecided) == (set(), 18)
    folder.fail(last, "the loss is not finite", "diverged", "")
    assert (len(later(plan_of(sweep, folder))), plan_of(sweep, folder).undecided) == (18, 0)


def test_a_map_without_a_value_has_no_best_cell(tmp_path):
    measure(SweepFolder(tmp_path), "lora", None)
    plan = plan_of(mapped_sweep(methods=["lora"]), SweepFolder(tmp_path))
    assert (later(plan), plan.undecided) == (set(), 0)


def test_shards_share_them_out(tmp_path):
    folder, sweep = SweepFolder(tmp_path), mapped_sweep()
    measure(folder, "lora", (16, 0.02))
    measure(folder, "dora", (8, 0.01))
    parts = [later(plan_of(sweep, folder, (i, 5))) for i in range(1, 6)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 2 * (9 + 4)


def test_a_dry_run_tells_how_many_there_may_be(tmp_path, capsys):
    sweep = sweep_file(methods=["lora"], seeds=[1], seeds_at_best=[2], vary={"train.lr": [0.01, 0.02]})
    list_runs(sweep, SweepFolder(tmp_path), (1, 1), tera=1.0)
    assert "; then at most 2 at the best of each map" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds_at_best": [1, 2]}, "hold a seed twice"),
        ({"vary": {}}, "needs vary"),
        ({"tune": {"grid": {"train.epochs": [1, 2]}}}, "no tune"),
    ],
)
def test_what_it_cannot_mean_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        mapped_sweep(**changes)
