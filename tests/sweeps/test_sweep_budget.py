"""A sweep's budget: which methods it brings to their knob, and what is refused beside it."""

import pytest

from capaboost.sweeps.budget import within_budget
from capaboost_core import UserError
from tests.sweeps.case import TINY, sweep_file


def test_a_method_keeps_the_knob_that_a_sweep_gives_it_alone(capsys):
    file = sweep_file(methods={"lora": {}, "wide": {"preset": "lora", "adapter.r": 64}}, budget="10k")
    methods = within_budget(file).methods
    assert methods["wide"] == {"preset": "lora", "adapter.r": 64}
    assert methods["lora"]["adapter.r"] not in (8, 64)
    assert "budget: wide keeps its own r, 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [{"set": TINY | {"adapter.r": 4}}, {"vary": {"adapter.r": [4, 8]}}, {"tune": {"grid": {"adapter.r": [4, 8]}}}],
    ids=["set", "vary", "tune"],
)
def test_a_knob_of_all_methods_beside_a_budget_is_refused(given):
    with pytest.raises(UserError, match=r"adapter\.r is given beside a budget"):
        within_budget(sweep_file(methods=["lora"], budget="10k", **given))
