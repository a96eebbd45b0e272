"""Compacter's Kronecker structure, its factors of low rank, and its slow weights, shared by all layers."""

import copy

import pytest
import torch
import torch.nn.functional as F

from capaboost_core import UserError, load_adapter, parameter_counts, save_adapter, trainable_parameters
from capaboost_core.injection import adapted_layers
from capaboost_core.methods import resolve_config
from tests.compatibility.models import base, drawn
from tests.methods.cases import DEPTH, WIDTH, R, adapted, out, put_in, trained
from tests.methods.tied_by_hand import views

PRESETS = pytest.mark.parametrize(("preset", "each"), [("compacter", 2), ("compacter++", 1)])


def kronecker_sum(slow, left, right):
    """sum_ij A_i kron (s_ij t_ij), as (in, out), over views j; s_ij is (in / n, k), t_ij (k, out / n)."""
    pairs = list(zip(left, right, strict=True))
    return sum(torch.kron(a, s[i].T @ t[i]) for i, a in enumerate(slow) for s, t in pairs)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("preset", ["compacter", "capaboost-compacter"])
def test_both_projections_are_sums_of_kronecker_products(preset, n, rank):
    config = resolve_config(preset).replace(r=8, phm_dim=n, phm_rank=rank)
    adapter = config.make_adapter("somewhere", 12, torch.zeros(1, dtype=torch.float64))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.copy_(drawn(name, tuple(parameter.shape), 1.0))
    h = drawn("h", (5, 3, 12), 1.0).double().requires_grad_()
    tied = {name: getattr(adapter, name) for name in ("down_left", "down_right", "up_left", "up_right")}
    for weight in tied.values():
        assert all(map(torch.equal, weight.copies().unbind(1), views(weight)))
    down, up = (
        kronecker_sum(adapter.slow, *(tied[f"{name}_{side}"].copies().unbind(1) for side in ("left", "right")))
        for name in ("down", "up")
    )
    assert torch.linalg.matrix_rank(adapter.slow[0]) == n  # else a kron tells little
    expected = F.gelu(h @ down + adapter.down_bias) @ up + adapter.up_bias
    torch.testing.assert_close(adapter(h), expected)
    inputs = [h, *adapter.parameters()]
    weights = drawn("weights", (5, 3, 12), 1.0)
    found, wanted = (torch.autograd.grad((y * weights).sum(), inputs) for y in (adapter(h), expected))
    torch.testing.assert_close(found, wanted)


def test_the_start_is_a_small_step_from_the_base():
    model = adapted("compacter", "bert")
    slow, (first, *_) = adapted_layers(model)[0].adapter.slow, adapted_layers(model)
    assert 0 < slow.std() < 3e-4
    bound = (12 / (WIDTH / 4 + 1)) ** 0.5
    assert 0.7 * bound < first.adapter.down_left.packed.abs().max() <= bound
    torch.testing.assert_close(out(model), out(base("bert")), atol=1e-4, rtol=0)


@PRESETS
def test_parameters_of_the_paper_and_slow_weights_once(preset, each):
    model = adapted(preset, "bert", phm_rank=2)
    per_adapter = 2 * 2 * (WIDTH + R) + R + WIDTH
    assert parameter_counts(model).trainable == DEPTH * each * per_adapter + 4**3


@PRESETS
def test_places(preset, each):
    layers = [layer.path for layer in adapted_layers(adapted(preset, "bert"))]
    assert len(layers) == DEPTH * each
    assert all(path.endswith("output.dense") for path in layers)
    assert any("attention.output" in path for path in layers) == (preset == "compacter")


def slow_weights(model):
    return {id(layer.adapter.slow) for layer in adapted_layers(model)}


@pytest.mark.parametrize("way", ["injected", "copied", "loaded", "meta"])
def test_all_layers_see_the_slow_weights_of_the_first(way, tmp_path):
    model = trained("compacter", "vit")
    if way == "copied":
        model = copy.deepcopy(model)
    elif way == "loaded":
        model = load_adapter(base("vit"), save_adapter(model, tmp_path))
    elif way == "meta":
        model = put_in(base("vit").to("meta"), resolve_config("compacter").replace(r=R)).to_empty(device="cpu")
        assert all(p.isfinite().all() for n, p in trainable_parameters(model).items() if "adapter" in n)
        assert 0 < adapted_layers(model)[0].adapter.slow.std() < 3e-4
    assert len(slow_weights(model)) == 1
    assert [name for name in trainable_parameters(model) if "slow" in name] == ["blocks.0.attn.proj.adapter.slow"]
    last, h = adapted_layers(model)[-1].adapter, drawn("h", (1, WIDTH), 1.0)
    before = last(h)
    with torch.no_grad():
        adapted_layers(model)[0].adapter.slow.add_(0.5)
    assert not torch.equal(last(h), before)


def test_the_gradient_of_the_slow_weights_is_the_sum_over_the_layers():
    model = trained("compacter++", "vit")
    first, second = (layer.adapter for layer in adapted_layers(model))
    h = drawn("h", (3, WIDTH), 1.0)
    alone = [torch.autograd.grad(adapter(h).square().sum(), first.slow)[0] for adapter in (first, second)]
    (first(h).square().sum() + second(h).square().sum()).backward()
    torch.testing.assert_close(first.slow.grad, sum(alone))
    assert all(gradient.any() for gradient in alone)


@pytest.mark.parametrize("changes", [{"r": 6}, {"r": 15, "phm_dim": 5}])
def test_sizes_that_n_does_not_divide_are_refused_before_the_model_changes(changes):
    model = base("vit")
    with pytest.raises(UserError, match="no multiple of phm_dim") as refusal:
        put_in(model, resolve_config("compacter").replace(**changes))
    assert "\n" not in str(refusal.value)
    assert not hasattr(model, "capaboost")
