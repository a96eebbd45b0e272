"""The fused step equals the written-out loop over d masked modules: outputs and gradients of a layer."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from capaboost_core import CapaBoostConfig
from capaboost_core.sharing.masks import mask_bits
from tests.core.fast_path_case import ALPHA, DOUBLE, DROPOUT, IN, OUT, Q_AND_V, RANK, WHOLE, assert_near, capa_linear

SLICES = pytest.mark.parametrize("slices", [WHOLE, Q_AND_V], ids=["whole", "q-and-v"])
CASES = list(itertools.product((1, 2, 4, 8), (0.5, 1.0), (True, False)))


class Loop:
    """x W^T + b + alpha/r * sum_i x (A*ma_i)^T (B*mb_i)^T in float64, one module at a time."""

    def __init__(self, layer, **settings):
        config = CapaBoostConfig(r=RANK, alpha=ALPHA, **settings)
        self.layer, self.kept, self.leaves, self.modules = layer, {}, {}, []
        for name, parameter in layer.named_parameters():
            if name in ("weight", "bias"):
                self.leaves[name] = parameter.detach().double().requires_grad_()
        slices = list(enumerate(layer.slices))
        of_a = torch.stack([self.bits(config, f"A.{i}", (RANK, IN)) for i, _ in slices])
        of_b = torch.cat([self.bits(config, f"B.{i}", (stop - start, RANK)).T for i, (start, stop) in slices], 1)
        a, b = self.masked(config, "lora_A.packed", of_a), self.masked(config, "lora_B.packed", of_b)
        end = 0
        for i, (start, stop) in slices:
            begin, end = end, end + stop - start
            self.modules += [(start, stop, a[copy][i], b[copy][:, begin:end].T) for copy in range(config.num_tied)]

    def bits(self, config, name, shape):
        return torch.from_numpy(mask_bits(config, "p", name, shape))

    def masked(self, config, name, bits):
        """A dense leaf that holds the packed values, times each mask."""
        dense = torch.zeros(bits.shape, dtype=DOUBLE)
        dense[bits != 0] = self.layer.get_parameter(name).detach().double().squeeze(1)
        self.kept[name], self.leaves[name] = bits != 0, dense.requires_grad_()
        return [dense * ((bits >> copy & 1) != 0) for copy in range(config.num_tied)]

    def __call__(self, x, seen=None):
        seen = x if seen is None else seen
        out = x @ self.leaves["weight"].T
        out = out + self.leaves["bias"] if "bias" in self.leaves else out
        for start, stop, a, b in self.modules:
            out = out + F.pad(ALPHA / RANK * (seen @ a.T @ b.T), (start, OUT - stop))
        return out

    def gradient(self, name):
        gradient = self.leaves[name].grad
        return gradient[self.kept[name]].unsqueeze(1) if name in self.kept else gradient


def assert_as_loop(layer, x, tolerance, **settings):
    """Outputs and all gradients; with dropout, both drop the same entries."""
    loop, y = Loop(layer, **settings), x.detach().double().requires_grad_()
    torch.manual_seed(9)
    out = layer(x)
    torch.manual_seed(9)
    expected = loop(y, y * F.dropout(torch.ones_like(x), DROPOUT) if layer.drops else None)
    assert_near(out, expected, tolerance)
    # the gradient that arrives is not contiguous
    weights = torch.randn(out.shape[::-1], dtype=DOUBLE).permute(*range(out.ndim)[::-1])
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    if x.requires_grad:
        assert_near(x.grad, y.grad, tolerance)
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == parameter.dtype
            assert_near(parameter.grad, loop.gradient(name), tolerance)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-10), (torch.float32, 1e-5)], ids=["double", "single"])
@SLICES
@pytest.mark.parametrize(("num_tied", "density", "bias"), CASES)
def test_as_the_loop(num_tied, density, bias, slices, dtype, tolerance):
    settings = dict(num_tied=num_tied, density=density)
    layer = capa_linear(slices, bias, dtype, **settings)
    assert all(tied.unmasked == (density == 1) for tied in layer.tied_weights().values())
    assert_as_loop(layer, torch.randn(3, 5, IN, dtype=dtype, requires_grad=True), tolerance, **settings)


@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
@pytest.mark.parametrize("bias", [True, False])
@SLICES
def test_base_that_is_trained_too(slices, bias, dropout):
    layer = capa_linear(slices, bias, trained_base=True, dropout=dropout)
    assert_as_loop(layer, torch.randn(3, 5, IN, dtype=DOUBLE, requires_grad=True), 1e-10)


@pytest.mark.parametrize("num_tied", [1, 2])
@SLICES
def test_increments_alone_see_the_dropped_input(slices, num_tied):
    layer = capa_linear(slices, num_tied=num_tied, dropout=DROPOUT)
    x = torch.randn(3, 5, IN, dtype=DOUBLE, requires_grad=True)
    assert_as_loop(layer, x, 1e-10, num_tied=num_tied)
    assert_near(layer.eval()(x), Loop(layer, num_tied=num_tied)(x), 1e-10)


LAYOUTS = {
    "vector": lambda: torch.randn(IN),
    "matrix": lambda: torch.randn(5, IN),
    "image": lambda: torch.randn(2, 3, 2, IN),
    "channels first": lambda: torch.randn(2, IN, 3, 2).permute(0, 2, 3, 1),
    "transposed": lambda: torch.randn(IN, 5).T,
    "sliced": lambda: torch.randn(3, 5, 2 * IN)[..., ::2],
    "expanded": lambda: torch.randn(1, 5, IN).expand(3, 5, IN),
    "no rows": lambda: torch.randn(0, IN),
    "no batch": lambda: torch.randn(0, 5, IN),
    "no tokens": lambda: torch.randn(3, 0, IN),
}


@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_shape_and_layout(layout, dropout, needs_gradient):
    x = LAYOUTS[layout]().double().detach().requires_grad_(needs_gradient)
    layer = capa_linear(dropout=dropout)
    assert_as_loop(layer, x, 1e-10)
    if not x.numel():
        assert all(not p.grad.any() for p in layer.own_parameters().values())


DEVICES = [
    pytest.param(device, dtype, marks=pytest.mark.skipif(absent, reason=f"no {device} here"))
    for device, absent in (("cpu", False), ("cuda", not torch.cuda.is_available()))
    for dtype in (torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("trained_base", [False, True])
@SLICES
def test_autocast(slices, trained_base, device, dtype):
    layer = capa_linear(slices, dtype=torch.float32, trained_base=trained_base)
    x = torch.randn(64, IN, requires_grad=True)
    loop, y = Loop(layer), x.detach().double().requires_grad_()
    loop(y).square().sum().backward()
    there = x.detach().to(device).requires_grad_()
    with torch.autocast(device, dtype):
        out = layer.to(device)(there)
    assert out.dtype == dtype
    assert_near(out.cpu(), loop(y).detach(), 0.02)
    out.float().square().sum().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert_near(gradient.cpu(), loop.gradient(name), 0.02)
    assert there.grad.dtype == torch.float32
    assert_near(there.grad.cpu(), y.grad, 0.02)


def test_autocast_lets_double_precision_be():
    with torch.autocast("cpu", torch.bfloat16):
        assert_as_loop(capa_linear(), torch.randn(5, IN, dtype=DOUBLE, requires_grad=True), 1e-10)


def test_autocast_does_not_lower_what_is_merged():
    layer = capa_linear(dtype=torch.float32)
    expected = layer.increments()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.increments(), expected, rtol=0, atol=0)


def test_backward_pass_within_autocast_of_a_layer_kept_out_of_it():
    layer, x = capa_linear(dtype=torch.float32), torch.randn(64, IN, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            out = layer(x)
        assert out.dtype == torch.float32
        out.sum().backward()
    loop, y = Loop(layer), x.detach().double().requires_grad_()
    loop(y).sum().backward()
    assert_near(x.grad, y.grad, 0.02)


CHANGES = {
    "whole": lambda out: out.relu_(),
    "slice": lambda out: (out[..., 8:].mul_(0.5), out)[1],
    "view": lambda out: (out.view(-1, 3, 8)[:, 0].exp_(), out)[1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_output_may_be_changed_in_place(change):
    layer, x = capa_linear(), torch.randn(5, IN, dtype=DOUBLE, requires_grad=True)
    loop, y = Loop(layer), x.detach().clone().requires_grad_()
    for out in (CHANGES[change](layer(x)), CHANGES[change](loop(y))):
        out.square().sum().backward()
    assert_near(x.grad, y.grad, 1e-10)
    for name, parameter in layer.own_parameters().items():
        assert_near(parameter.grad, loop.gradient(name), 1e-10)


def test_input_changed_in_place_before_the_backward_pass_is_an_error():
    layer, x = capa_linear(), torch.randn(5, IN, dtype=DOUBLE)
    out = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_derivatives_are_an_error():
    layer, x = capa_linear(), torch.randn(5, IN, dtype=DOUBLE, requires_grad=True)
    for leaf in (x, *layer.own_parameters().values()):
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_masked_copies_alone_can_be_differentiated_twice():
    """As the adapters and the prefix use them."""
    tied = capa_linear().lora_A
    bits = [mask_bits(CapaBoostConfig(r=RANK), "p", f"A.{index}", (RANK, IN)) for index in range(2)]
    masks = [torch.from_numpy(np.stack(bits)) >> copy & 1 for copy in range(2)]
    (gradient,) = torch.autograd.grad(tied.copies().pow(3).sum(), tied.packed, create_graph=True)
    gradient.sum().backward()
    dense = torch.zeros(2, RANK, IN, dtype=DOUBLE)
    dense[sum(masks) > 0] = 6 * tied.packed.detach().squeeze(1)
    torch.testing.assert_close(tied.packed.grad.squeeze(1), (dense * sum(masks))[sum(masks) > 0], rtol=1e-12, atol=0)
