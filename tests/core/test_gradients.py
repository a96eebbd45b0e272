"""Outputs and gradients equal those of the written-out sum over d masked modules, in float64."""

import pytest
import torch
from torch import nn

from capaboost_core import CapaBoostConfig, Target
from capaboost_core.methods.bottleneck import AdapterLinear, AdapterNorm
from capaboost_core.methods.lora_layer import LoRALinear

KINDS = [("random", {}), ("nm", {"n": 2, "m": 4}), ("same", {})]


def config_of(method, num_tied, kind, groups):
    return CapaBoostConfig(method, r=4, num_tied=num_tied, mask=kind, alpha=6, scaling="alpha-r", **groups)


def dense_and_masks(tied):
    """A dense leaf with the packed values at the kept places, and the d masks, by plain loops."""
    bits, shape = tied.bits.flatten().tolist(), tied.bits.shape
    values = iter(tied.packed.flatten().tolist())
    dense = torch.tensor([next(values) if entry else 0.0 for entry in bits], dtype=torch.float64).view(shape)
    masks = [
        torch.tensor([float(entry >> copy & 1) for entry in bits], dtype=torch.float64).view(shape)
        for copy in range(tied.num_tied)
    ]
    return dense.requires_grad_(), masks


def assert_same_gradient(tied, dense):
    kept = tied.bits != 0
    torch.testing.assert_close(tied.packed.grad.squeeze(1), dense.grad[kept], rtol=1e-10, atol=1e-12)
    assert dense.grad[kept].abs().sum() > 0


def randomise(layer):
    for parameter in layer.own_parameters().values():
        nn.init.normal_(parameter)


@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=[k for k, _ in KINDS])
@pytest.mark.parametrize("num_tied", [1, 2, 4])
@pytest.mark.parametrize("slices", [None, ((0, 8), (16, 24))], ids=["whole", "q-and-v"])
def test_lora(num_tied, kind, groups, slices):
    torch.manual_seed(0)
    base = nn.Linear(12, 24).double()
    layer = LoRALinear(base, config_of("lora", num_tied, kind, groups), Target("p", slices))
    randomise(layer)
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected = y @ base.weight.T + base.bias
    (a, masks_a), (b, masks_b) = dense_and_masks(layer.lora_A), dense_and_masks(layer.lora_B)  # b is B^T
    for index, (start, stop) in enumerate(slices or ((0, 24),)):
        columns = slice(0, 24) if slices is None else slice(8 * index, 8 * index + 8)
        for mask_a, mask_b in zip(masks_a, masks_b, strict=True):
            delta = 6 / 4 * (y @ (a * mask_a)[index].T) @ (b * mask_b)[:, columns]
            expected = expected + nn.functional.pad(delta, (start, 24 - stop))
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-12)
    assert_same_gradient(layer.lora_A, a)
    assert_same_gradient(layer.lora_B, b)


@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=[k for k, _ in KINDS])
@pytest.mark.parametrize("num_tied", [1, 2, 4])
@pytest.mark.parametrize("base", [nn.Linear(24, 24), nn.LayerNorm(24)], ids=["linear", "norm"])
def test_adapter(base, num_tied, kind, groups):
    torch.manual_seed(0)
    config, norm = config_of("padapter", num_tied, kind, groups), isinstance(base, nn.LayerNorm)
    layer = (AdapterNorm if norm else AdapterLinear)(base.double(), config, Target("p"))
    randomise(layer)
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    h = base(x)
    (down, masks_down), (up, masks_up) = dense_and_masks(layer.adapter.down), dense_and_masks(layer.adapter.up)
    c, e = (p.detach().clone().requires_grad_() for p in (layer.adapter.down_bias, layer.adapter.up_bias))
    modules = [
        ((h @ (down * mask_down).T + c).clamp(min=0)) @ (up * mask_up)
        for mask_down, mask_up in zip(masks_down, masks_up, strict=True)
    ]
    increment = 6 / 4 * (sum(modules) + e)
    expected = base(x + increment) if norm else h + increment
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same_gradient(layer.adapter.down, down)
    assert_same_gradient(layer.adapter.up, up)
    torch.testing.assert_close(layer.adapter.down_bias.grad, c.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.adapter.up_bias.grad, e.grad, rtol=1e-10, atol=1e-12)


def test_dropout_masks_are_redrawn_in_training_and_averaged_in_evaluation():
    torch.manual_seed(0)
    layer = LoRALinear(
        nn.Linear(16, 16).double(), CapaBoostConfig(r=4, mask="dropout", scaling="alpha-r"), Target("p")
    )
    randomise(layer)
    x = torch.randn(2, 16, dtype=torch.float64)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.eval()
    a, b = layer.lora_A.packed.view(4, 16), layer.lora_B.packed.view(4, 16).T
    expected = layer.weight @ x.T + layer.bias[:, None] + 2 * 0.25 * b @ (a @ x.T)
    torch.testing.assert_close(layer(x), expected.T)
    layer.train()
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, expected.T, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("num_tied", [1, 2, 4])
def test_increment_has_d_times_the_rank(num_tied):
    config = CapaBoostConfig(r=8, num_tied=num_tied, density=0.5 if num_tied > 1 else 1.0)
    layer = LoRALinear(nn.Linear(96, 96).double(), config, Target("p"))
    randomise(layer)
    assert torch.linalg.matrix_rank(layer.delta_weights()[0]) == 8 * num_tied


def test_official_initialisation_is_the_authors():
    torch.manual_seed(0)
    lora = LoRALinear(nn.Linear(768, 768), CapaBoostConfig(r=8, init="official"), Target("p"))
    assert lora.lora_A.packed.abs().max().item() == pytest.approx(8**-0.5, rel=0.01)
    assert lora.lora_B.packed.abs().max().item() == 0
    adapter = AdapterLinear(nn.Linear(768, 768), CapaBoostConfig("padapter", init="official"), Target("p"))
    for tied in (adapter.adapter.down, adapter.adapter.up):
        assert tied.packed.std().item() == pytest.approx(0.02, rel=0.05)
