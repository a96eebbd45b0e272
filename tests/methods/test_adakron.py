"""AdaKron's Kronecker product of vectors, and MAdaKron's experts for its factors."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from capaboost_core import UserError
from capaboost_core.injection import adapted_layers
from capaboost_core.methods import resolve_config
from tests.compatibility.models import drawn
from tests.methods.cases import DEPTH, adapted
from tests.methods.mixtures import ROWS, WIDTH, adapter_of, biases, matrices, seen

H = drawn("h", (ROWS, WIDTH), 1.0).double()


def reference(adapter, left=0, right=0):
    """U f((A2 h + c2) kron (A1 h + c1)) + e of a pair of experts, row by row; "mean" has the mean weights."""

    def factor(name, expert, h):
        weights, offsets = matrices(adapter, name), biases(adapter, name)
        mean = expert == "mean"
        return (weights.mean(0) if mean else weights[expert]) @ h + (offsets.mean(0) if mean else offsets[expert])

    up = matrices(adapter, "up")[0]  # U^T
    hidden = [torch.kron(factor("left", left, h), factor("right", right, h)) for h in H]
    return torch.stack([F.gelu(row) @ up + adapter.up_bias for row in hidden])


@pytest.mark.parametrize(("r", "left"), [(4, 4), (8, 4), (12, 3), (5, 1)])
def test_the_hidden_vector_is_a_kronecker_product(r, left):
    adapter = adapter_of("adakron", r=r, left=left)
    assert (len(adapter.left_bias), len(adapter.right_bias)) == (left, r // left)
    torch.testing.assert_close(adapter(H), reference(adapter))


def test_tied_modules_each_have_a_product_of_their_own():
    adapter = adapter_of("capaboost-adakron", r=8, num_tied=3)
    copies = [getattr(adapter, name).copies() for name in ("left", "right", "up")]
    total = adapter.up_bias
    for left, right, up in zip(*copies, strict=True):
        small = (H @ left.T + adapter.left_bias, H @ right.T + adapter.right_bias)
        total = total + F.gelu(torch.einsum("ni,nj->nij", *small).flatten(1)) @ up
    torch.testing.assert_close(adapter(H), total)


@pytest.mark.parametrize(("preset", "experts"), [("madakron", (3, 3)), ("madakron-partial", (3, 1))])
def test_training_draws_experts_and_evaluation_has_their_means(preset, experts):
    adapter = adapter_of(preset, r=8, num_experts=3)
    pairs = list(product(*map(range, experts)))
    assert seen(lambda: adapter(H), {pair: reference(adapter, *pair) for pair in pairs}) == {*pairs}
    adapter.eval()
    torch.testing.assert_close(adapter(H), reference(adapter, "mean", "mean"))


def test_it_stands_after_the_feed_forward_parts_with_their_two_thirds_of_a_bottleneck():
    assert len(adapted_layers(adapted("adakron", "bert"))) == DEPTH
    config = resolve_config("adakron")
    adapter = config.make_adapter("a", 768, torch.zeros(1))
    assert (config.r, sum(p.numel() for p in adapter.parameters())) == (48, 768 * (12 + 4 + 48) + 12 + 4 + 768)


def test_an_r_that_left_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"r is 6; .* left, 4"):
        resolve_config("adakron").replace(r=6)
