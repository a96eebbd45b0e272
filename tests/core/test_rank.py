"""Ranks of increments: against NumPy on the dense matrix, and against formulas written out."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from capaboost.report.rank import draw_theorem, model_ranks, product_spectrum, spectrum
from capaboost_core import CapaBoostConfig, Plan, Target, UserError, inject, merge, trainable_parameters


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def deficient(out, inner, width, rank):
    """Factors (out, inner), (inner, width) whose product has the rank exactly: the others repeat columns."""
    b, a = normal(out, inner), normal(inner, width, seed=1)
    b[:, rank:] = b[:, :1]
    a[rank:] = a[:1]
    return b, a


PRODUCTS = {
    "tall": (normal(40, 6), normal(6, 24, seed=1), 6),
    "as wide as inner": (normal(8, 8), normal(8, 8, seed=1), 8),
    "inner above both widths": (normal(12, 30), normal(30, 20, seed=1), 12),
    "repeated columns": (*deficient(32, 10, 24, 4), 4),
    "values of many sizes": (normal(30, 5) * 10.0 ** -torch.arange(5), normal(5, 30, seed=1), 5),
    "rank one": (normal(16, 1), normal(1, 16, seed=1), 1),
    "zero": (torch.zeros(16, 4), normal(4, 16), 0),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_factors_give_the_ranks_and_values_of_the_dense_product(case):
    b, a, rank = PRODUCTS[case]
    dense = b.double().numpy() @ a.double().numpy()
    expected = np.linalg.svd(dense, compute_uv=False)
    for found in (product_spectrum(b, a), spectrum(torch.from_numpy(dense))):
        assert found.rank() == np.linalg.matrix_rank(dense) == rank
        values = np.pad(found.values.numpy(), (0, len(expected) - len(found.values)))
        np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-13 * expected[0])
        stable = (dense**2).sum() / expected[0] ** 2 if rank else 0
        assert found.stable_rank == pytest.approx(stable, rel=1e-9)
        shares = expected[expected > 1e-12 * expected[0]] / expected.sum() if rank else []
        effective = math.exp(-sum(p * math.log(p) for p in shares)) if rank else 0
        assert found.effective_rank == pytest.approx(effective, rel=1e-6)


KNOWN = {
    "identity": (torch.eye(7), 7, 7.0, 7.0),
    "one direction": (torch.outer(normal(5), normal(9, seed=1)), 1, 1.0, 1.0),
    "three equal values": (4 * torch.linalg.qr(normal(9, 3, dtype=torch.float64)).Q, 3, 3.0, 3.0),
    "2 and 1": (torch.diag(torch.tensor([1.0, -2.0, 0.0])), 2, 1.25, 3 / 2 ** (2 / 3)),  # p = 2/3 and 1/3
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_matrices(case):
    matrix, rank, stable, effective = KNOWN[case]
    found = spectrum(matrix.float() if case == "one direction" else matrix)
    assert found.rank(torch.float32) == rank
    assert found.stable_rank == pytest.approx(stable, rel=1e-6)
    assert found.effective_rank == pytest.approx(effective, rel=1e-4)


def test_single_precision_does_not_see_what_its_rounding_hides():
    found = spectrum(torch.diag(torch.tensor([1.0, 1e-3, 1e-9], dtype=torch.float64)))
    assert (found.rank(), found.rank(torch.float32)) == (3, 2)


def adapted(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 72), nn.Linear(72, 32))
    plan = Plan((Target("0", ((0, 24), (48, 72))), Target("1")))
    inject(model, CapaBoostConfig("lora", **settings), plan)
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter)
    return model


CASES = [
    (dict(r=4, num_tied=1, density=1.0), 4),
    (dict(r=4, num_tied=1), 4),
    (dict(r=4, num_tied=2), 8),
    (dict(r=4, num_tied=4), 16),
    (dict(r=4, num_tied=2, mask="nm", n=2, m=4), 8),
    (dict(r=4, num_tied=2, mask="same"), 4),
    (dict(r=4, num_tied=2, density=1.0), 4),
    (dict(r=4, num_tied=2, mask="dropout"), 4),  # evaluation sees the mean of its masks
]


@pytest.mark.parametrize(("settings", "rank"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_a_model_has_rank_dr_where_masks_differ_and_r_where_they_do_not(settings, rank):
    model = adapted(**settings)
    rows = model_ranks(model)
    assert [(row.layer, row.start, row.stop) for row in rows] == [("0", 0, 24), ("0", 48, 72), ("1", 0, 32)]
    dense = [increment.double().numpy() for layer in model for increment in layer.delta_weights()]
    for row, increment in zip(rows, dense, strict=True):
        assert row.spectrum.rank() == rank
        assert row.bound == 4 * settings["num_tied"]
        assert np.linalg.matrix_rank(increment, tol=1e-5 * np.linalg.norm(increment, 2)) == rank
        assert row.spectrum.shape == increment.shape
        np.testing.assert_allclose(row.spectrum.stable_rank, np.linalg.norm(increment) ** 2
                                   / np.linalg.norm(increment, 2) ** 2, rtol=1e-5)  # fmt: skip
    assert model[0].training


def test_width_bounds_the_rank():
    rows = model_ranks(adapted(r=16, num_tied=4))
    assert [(row.bound, row.spectrum.rank()) for row in rows] == [(24, 24), (24, 24), (32, 32)]


def test_a_merged_model_keeps_its_ranks_and_an_untrained_one_has_none():
    assert [row.spectrum.rank() for row in model_ranks(merge(adapted(r=4)))] == [8, 8, 8]
    untrained = inject(nn.Sequential(nn.Linear(8, 8)), CapaBoostConfig(r=2, targets=["0"]))
    record = model_ranks(untrained)[0].to_dict()
    assert (record["rank"], record["stable_rank"], record["effective_rank"]) == (0, 0, 0)


def test_what_has_no_rank_is_one_clear_line():
    padapter = inject(nn.Sequential(nn.Linear(8, 8)), CapaBoostConfig("padapter", r=2), Plan((Target("0"),)))
    diverged = adapted(r=2)
    with torch.no_grad():
        diverged[1].lora_A.packed[0] = math.nan
    wrong = {"padapter adds no increment": padapter, "1 holds values that are not finite": diverged,
             "no adapter": nn.Linear(8, 8)}  # fmt: skip
    for message, model in wrong.items():
        with pytest.raises(UserError, match=message) as caught:
            model_ranks(model)
        assert "\n" not in str(caught.value)


def test_theorem_holds_in_every_draw_and_masks_keep_it_at_half_density():
    report = draw_theorem(size=24, draws=20, seed=0)
    assert {row["r"] for row in report["independent"]} >= {1, 11, 12, 13, 24}  # up to and past 2r = n
    for row in report["independent"]:
        assert row["ranks"] == {str(min(2 * row["r"], 24)): 20}
    masked = {(row["mask"], row["density"]): row for row in report["masked"]}
    assert (report["masked_r"], masked["random", 0.5]["expected"]) == (3, 6)
    assert masked["random", 0.5]["equal"] >= 19
    assert masked["same", 0.5]["ranks"] == masked["random", 1.0]["ranks"] == {"3": 20}
    assert masked["random", 0.02]["equal"] == 0
    assert report == draw_theorem(size=24, draws=20, seed=0)
    assert report["masked"] != draw_theorem(size=24, draws=20, seed=1)["masked"]
    with pytest.raises(UserError, match="size of 24 or more"):
        draw_theorem(size=23, draws=1, seed=0)
