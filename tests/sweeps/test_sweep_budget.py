"""A sweep's budget: which methods it brings to their size, and what is refused beside it."""

import pytest

from capaboost.sweeps.estimate import judged_alike, within_budget
from capaboost_core import UserError
from tests.sweeps.case import TINY, sweep_file

MODELS = ("roberta-base", "microsoft/deberta-v3-base")  # Tables 2 and 3, whose protocols differ


def test_a_method_keeps_the_size_that_a_sweep_gives_it_alone(capsys):
    file = sweep_file(methods={"lora": {}, "wide": {"preset": "lora", "adapter.r": 64}}, budget="10k")
    methods = within_budget(file).methods
    assert methods["wide"] == {"preset": "lora", "adapter.r": 64}
    assert methods["lora"]["adapter.r"] not in (8, 64)
    assert "budget: wide keeps its own r, 64" in capsys.readouterr().err


def test_a_sweep_takes_sizes_far_from_its_budget_where_it_says_nearest():
    file = sweep_file(methods={"lora": {}}, set=TINY, budget="100")
    with pytest.raises(UserError, match="nearest: true in a sweep"):
        within_budget(file)
    assert within_budget(file.replace(nearest=True)).methods["lora"]["adapter.r"] == 1


@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        ({}, "last"),
        ({"data.protocol": "select"}, "best"),
        ({"data.protocol": "select", "train.select": "last"}, "last"),
    ],
)
def test_tuning_is_judged_by_the_epoch_that_final_runs_test(settings, epoch):
    tune = {"grid": {"train.lr": [1e-3, 1e-2]}}
    file = sweep_file(methods=["lora"], set=TINY | settings, tune=tune)
    assert judged_alike(file).tune.epoch == epoch
    said = sweep_file(methods=["lora"], set=TINY | settings, tune=tune | {"epoch": "best"})
    assert judged_alike(said).tune.epoch == "best"
    untuned = sweep_file(methods=["lora"], set=TINY | settings)
    assert judged_alike(untuned) == untuned


def test_text_that_selects_its_epoch_is_tuned_by_it():
    tune = {"grid": {"train.lr": [1e-3, 1e-2]}, "protocol": "propetl"}
    of = {"command": "train-glue", "tasks": ["cola"], "methods": ["lora"], "tune": tune}
    epochs = [judged_alike(sweep_file(**of, set={"model.name": name})).tune.epoch for name in MODELS]
    assert epochs == ["best", "last"]


@pytest.mark.parametrize(
    "given",
    [{"set": TINY | {"adapter.r": 4}}, {"vary": {"adapter.r": [4, 8]}}, {"tune": {"grid": {"adapter.r": [4, 8]}}}],
    ids=["set", "vary", "tune"],
)
def test_a_size_of_all_methods_beside_a_budget_is_refused(given):
    with pytest.raises(UserError, match=r"adapter\.r is given beside a budget"):
        within_budget(sweep_file(methods=["lora"], budget="10k", **given))
