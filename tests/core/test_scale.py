"""docs/scale.md's laws: how far an increment moves in its first steps of Adam, over d, density, r and kinds of mask.

A layer sees the unit matrix, so its output is its weight W, and the loss is the sum of G * W: G is its gradient. The
effect of an increment is what it takes off the loss.
"""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from capaboost_core import UserError, inject
from capaboost_core.methods import Method

WIDTH, LR, LOW = 192, 0.1, 3  # LOW is the rank of a real layer's gradient: a few directions, and below r
TABLE = list(product((1, 2, 4), (0.25, 0.5, 0.75, 1.0), (4, 8, 32)))
each_row = pytest.mark.parametrize(("d", "density", "r"), TABLE)


def gradient(rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(WIDTH, rank, generator=generator) for _ in range(2))
    return left @ right.T


def effect(*arguments) -> float:
    """What the loss loses."""
    return train(*arguments)[1]


def train(settings: dict, steps: int, rank: int, inputs: Tensor | None = None) -> tuple[nn.Module, float]:
    """Some steps of Adam on an increment with alpha = 8, with a G of the given rank: the model, what the loss lost."""
    torch.manual_seed(0)
    model = inject(nn.Sequential(nn.Linear(WIDTH, WIDTH)), Method(alpha=8.0, targets=["0"], **settings))
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    inputs, optimizer = torch.eye(WIDTH) if inputs is None else inputs, torch.optim.Adam(matrices, LR)

    def loss() -> Tensor:
        return (model(inputs) * gradient(rank)[: len(inputs)]).sum()

    start = loss().item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.eval()
    return model, start - loss().item()


def tied(d: int, density: float, r: int, scaling: str = "stable", **settings) -> dict:
    return {"r": r, "num_tied": d, "density": density, "scaling": scaling} | settings


def first_step(d: int, density: float) -> float:
    """E sqrt(n p + n (n - 1) p^2), n ~ Binomial(d, p): the n masks of B that keep an entry, p that of A's."""
    p = density
    chances = (math.comb(d, n) * p**n * (1 - p) ** (d - n) for n in range(d + 1))
    return sum(chance * math.sqrt(n * p + n * (n - 1) * p**2) for n, chance in enumerate(chances))


def plain_first_step() -> float:
    """LoRA's: alpha lr sqrt(2 / pi) sigma sum_o |G_o|, with sigma = 1 / sqrt(3 in) of A, for any r."""
    return 8 * LR * math.sqrt(2 / math.pi) / math.sqrt(3 * WIDTH) * gradient(WIDTH).norm(dim=1).sum().item()


@each_row
def test_the_first_step_moves_b_alone(d, density, r):
    relative = effect(tied(d, density, r), 1, WIDTH) / plain_first_step()
    assert relative == pytest.approx(first_step(d, density) / (d * density**2), rel=0.12)
    assert 0.88 < relative < 1.12 / math.sqrt(density)


@pytest.mark.parametrize(("d", "density"), list(product((1, 2, 4), (0.25, 0.5, 1.0))))
def test_the_first_step_adds_products_of_random_signs_to_an_entry(d, density):
    """m modules keep a product, E m^2 = d p^2 (1 + (d - 1) p^2); r products of variance (lr sigma)^2 make an entry."""
    norm = train(tied(d, density, 8, "alpha-r"), 1, WIDTH)[0][0].delta_weights()[0].norm().item()
    squares = d * density**2 * (1 + (d - 1) * density**2)
    assert norm == pytest.approx(LR / math.sqrt(3 * WIDTH) * WIDTH * math.sqrt(8 * squares), rel=0.1)


@pytest.fixture(scope="module")
def plain() -> float:
    return effect(tied(1, 1.0, 8), 10, LOW)


@each_row
def test_after_ten_steps_stable_increments_have_moved_alike(d, density, r, plain):
    assert effect(tied(d, density, r), 10, LOW) / plain == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize(("d", "density"), [(1, 0.5), (2, 0.25), (2, 0.5), (4, 0.75), (4, 1.0)])
def test_with_alpha_over_r_they_have_moved_by_the_products_that_masks_keep(d, density, plain):
    moved = effect(tied(d, density, 8, "alpha-r"), 10, LOW) / plain
    assert moved == pytest.approx(d * density**2, rel=0.15)


@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("mask", [{"mask": "same"}, {"mask": "nm", "n": 2, "m": 4}], ids=["same", "nm"])
def test_fixed_masks_of_any_kind_move_alike(mask, d, plain):
    assert effect(tied(d, 0.5, 8, **mask), 10, LOW) / plain == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_redrawn_masks_lack_the_steps_in_which_no_module_sees_an_entry(d):
    """Adam moves an entry whose gradient is n g, n ~ Binomial(d, p), by E n / sqrt(E n^2) of a step; both factors."""
    moved = effect(tied(d, 0.5, 8, mask="dropout"), 20, LOW) / effect(tied(1, 1.0, 8), 20, LOW)
    assert moved == pytest.approx(d * 0.5 / (1 + (d - 1) * 0.5), rel=0.15)


@each_row
def test_adapters_follow_the_same_law(d, density, r):
    inputs = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(2))
    settings = (row | {"method": "padapter"} for row in (tied(1, 1.0, 8), tied(d, density, r)))
    plain, moved = (effect(row, 10, LOW, inputs) for row in settings)
    assert moved / plain == pytest.approx(1, rel=0.2)


SETTINGS = {  # scale of the products, of what is added once
    "default": ({"alpha": 16.0, "r": 4, "num_tied": 4, "density": 0.25}, 16, 4),
    "alpha-r": ({"alpha": 16.0, "r": 4, "num_tied": 4, "density": 0.25, "scaling": "alpha-r"}, 4, 4),
    "stable": ({"alpha": 16.0, "r": 4, "num_tied": 4, "density": 0.25, "scaling": "stable"}, 16, 4),
    "without alpha": ({"r": 4, "num_tied": 2, "density": 0.5, "scaling": "stable"}, 2, 1),
    "plain": ({"alpha": 16.0, "r": 4, "num_tied": 1, "density": 1.0, "scaling": "stable"}, 4, 4),
    "nm": ({"alpha": 8.0, "r": 4, "num_tied": 2, "mask": "nm", "n": 1, "m": 4, "scaling": "stable"}, 16, 2),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_the_scale_by_hand(case):
    settings, scale, bias_scale = SETTINGS[case]
    method = Method(**settings)
    assert (method.scale, method.bias_scale) == (scale, bias_scale)


def test_an_adapters_output_bias_is_added_once():
    settings = dict(method="padapter", r=4, num_tied=4, density=0.25, alpha=16.0, targets=["0"], scaling="stable")
    adapter = inject(nn.Sequential(nn.Linear(8, 8)), Method(**settings))[0].adapter
    with torch.no_grad():
        adapter.up_bias.fill_(1.0)
    assert torch.equal(adapter(torch.zeros(1, 8)), torch.full((1, 8), 4.0))


@pytest.mark.parametrize("density", [1e-20, 1e-200])
def test_a_scale_beyond_float32_is_one_line(density):
    with pytest.raises(UserError, match=r"scaling is 'stable'; alpha / \(r d density\^2\) .* raise density"):
        Method(density=density, scaling="stable")


def test_an_unknown_scaling_is_one_line():
    with pytest.raises(UserError, match="scaling is 'rslora'; type alpha-r or stable"):
        Method(scaling="rslora")
