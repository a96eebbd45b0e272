"""The fused step equals `reference.increments`, one masked module at a time: outputs and gradients of a layer."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

from capaboost_core import CapaBoostConfig, UserError
from capaboost_core.methods.reference import increments
from capaboost_core.sharing.masks import mask_bits
from tests.core.fast_path_case import ALPHA, DOUBLE, DROPOUT, IN, OUT, Q_AND_V, RANK, WHOLE, assert_near, lora_linear

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
        self.config, self.slices = config, list(enumerate(layer.slices))
        of_a = torch.stack([self.bits(f"A.{i}", (RANK, IN)) for i, _ in self.slices])
        of_b = torch.cat([self.bits(f"B.{i}", (stop - start, RANK)).T for i, (start, stop) in self.slices], 1)
        self.of = {"lora_A.packed": of_a, "lora_B.packed": of_b}
        for name, bits in self.of.items():
            self.kept[name] = bits != 0
            entries = layer.get_parameter(name).detach().double()
            self.leaves[name] = self.placed(name, entries).requires_grad_()
        self.modules = self.modules_of(*(self.leaves[name] for name in self.of))

    def modules_of(self, dense_a, dense_b):
        """A, B and their masks for each slice, with the columns of the output that they add to."""
        masks_a, masks_b = self.masks("lora_A.packed"), self.masks("lora_B.packed")
        modules, end = [], 0
        for i, (start, stop) in self.slices:
            begin, end = end, end + stop - start
            weights = dense_a[i], dense_b[:, begin:end].T
            modules.append((start, stop, *weights, masks_a[:, i], masks_b[:, :, begin:end].mT))
        return modules

    def placed(self, name, entries):
        """A dense weight with the packed entries (n, 1) at their places."""
        values, kept = iter(entries.flatten().unbind()), self.kept[name].flatten().tolist()
        return torch.stack([next(values) if entry else entries.new_zeros(()) for entry in kept]).view(
            self.of[name].shape
        )

    def of_increments(self):
        return [self.leaves[name] for name in self.kept]

    def with_entries(self, of, x):
        """The same with other entries of the increments."""
        dense = {name: self.placed(name, of[name]) for name in self.kept}
        twin = copy.copy(self)
        twin.modules = self.modules_of(*dense.values())
        return twin(x)

    def bits(self, name, shape):
        return torch.from_numpy(mask_bits(self.config, "p", name, shape))

    def masks(self, name):
        """The mask of each copy."""
        return torch.stack([(self.of[name] >> copy & 1) != 0 for copy in range(self.config.num_tied)])

    def __call__(self, x, seen=None):
        seen = x if seen is None else seen
        out = x @ self.leaves["weight"].T
        out = out + self.leaves["bias"] if "bias" in self.leaves else out
        for start, stop, *weights_and_masks in self.modules:
            for increment in increments(seen, *weights_and_masks, ALPHA / RANK):
                out = out + F.pad(increment, (start, OUT - stop))
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
    layer = lora_linear(slices, bias, dtype, **settings)
    assert all(tied.unmasked == (density == 1) for tied in layer.tied_weights().values())
    assert_as_loop(layer, torch.randn(3, 5, IN, dtype=dtype, requires_grad=True), tolerance, **settings)


@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
@pytest.mark.parametrize("bias", [True, False])
@SLICES
def test_base_that_is_trained_too(slices, bias, dropout):
    layer = lora_linear(slices, bias, trained_base=True, dropout=dropout)
    assert_as_loop(layer, torch.randn(3, 5, IN, dtype=DOUBLE, requires_grad=True), 1e-10)


@pytest.mark.parametrize("num_tied", [1, 2])
@SLICES
def test_increments_alone_see_the_dropped_input(slices, num_tied):
    layer = lora_linear(slices, num_tied=num_tied, dropout=DROPOUT)
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
    layer = lora_linear(dropout=dropout)
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
    layer = lora_linear(slices, dtype=torch.float32, trained_base=trained_base)
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
        assert_as_loop(lora_linear(), torch.randn(5, IN, dtype=DOUBLE, requires_grad=True), 1e-10)


def test_autocast_does_not_lower_what_is_merged():
    layer = lora_linear(dtype=torch.float32)
    expected = layer.delta_weights()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.delta_weights(), expected, rtol=0, atol=0)


def test_backward_pass_within_autocast_of_a_layer_kept_out_of_it():
    layer, x = lora_linear(dtype=torch.float32), torch.randn(64, IN, requires_grad=True)
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
    layer, x = lora_linear(), torch.randn(5, IN, dtype=DOUBLE, requires_grad=True)
    loop, y = Loop(layer), x.detach().clone().requires_grad_()
    for out in (CHANGES[change](layer(x)), CHANGES[change](loop(y))):
        out.square().sum().backward()
    assert_near(x.grad, y.grad, 1e-10)
    for name, parameter in layer.own_parameters().items():
        assert_near(parameter.grad, loop.gradient(name), 1e-10)


def test_input_changed_in_place_before_the_backward_pass_is_an_error():
    layer, x = lora_linear(), torch.randn(5, IN, dtype=DOUBLE)
    out = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("slices", [WHOLE, Q_AND_V], ids=["whole", "q-and-v"])
@pytest.mark.parametrize(
    ("bias", "trained_base", "dropout"), [(True, False, 0.0), (False, True, 0.0), (True, True, 0.3)]
)
def test_second_derivatives_are_those_of_differences(bias, trained_base, dropout, slices):
    layer = lora_linear(slices, bias, trained_base=trained_base, dropout=dropout)
    x = torch.randn(3, IN, dtype=DOUBLE, requires_grad=True)
    names, leaves = zip(*((name, p) for name, p in layer.named_parameters() if p.requires_grad), strict=True)

    def run(x, *values):
        torch.manual_seed(1)  # of the dropout
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradgradcheck(run, (x, *leaves))


@pytest.mark.parametrize(("num_tied", "density"), [(1, 1.0), (2, 0.5)])
def test_a_gradient_penalty_trains_as_in_the_loop(num_tied, density):
    settings = {"num_tied": num_tied, "density": density}
    layer, x = lora_linear(**settings), torch.randn(2, IN, dtype=DOUBLE, requires_grad=True)
    loop, hessians = Loop(layer, **settings), []
    for call in (layer, loop):
        hessians.append(torch.autograd.functional.hessian(lambda x, call=call: call(x).pow(3).sum(), x))
        (gradient,) = torch.autograd.grad(call(x).pow(3).sum(), x, create_graph=True)
        gradient.norm().backward(inputs=[*layer.own_parameters().values()] if call is layer else loop.of_increments())
    assert_near(*hessians, 1e-10)
    for name, parameter in layer.own_parameters().items():
        assert_near(parameter.grad, loop.gradient(name), 1e-10)


def by_name(layer):
    return {name: parameter.detach() for name, parameter in layer.own_parameters().items()}


TRANSFORMS = {
    "grad": lambda f, of, x, t: torch.func.grad(lambda of: f(of, x).pow(3).sum())(of),
    "a gradient of each row": lambda f, of, x, t: torch.func.vmap(
        torch.func.grad(lambda of, x: f(of, x).pow(3).sum()), (None, 0)
    )(of, x),
    "vmap over models": lambda f, of, x, t: torch.func.vmap(f, (dict.fromkeys(of, 0), None))(
        {name: torch.stack([p, 2 * p]) for name, p in of.items()}, x
    ),
    "jvp": lambda f, of, x, t: torch.func.jvp(lambda x: f(of, x), (x,), (t,)),
    "forward over reverse": lambda f, of, x, t: torch.func.hessian(lambda x: f(of, x).pow(3).sum())(x),
    "jacrev": lambda f, of, x, t: torch.func.jacrev(lambda of: f(of, x))(of),
}


@pytest.mark.parametrize(("num_tied", "density"), [(1, 1.0), (2, 0.5)])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_torch_func(transform, num_tied, density):
    settings = {"num_tied": num_tied, "density": density}
    layer = lora_linear(**settings)
    loop, of = Loop(layer, **settings), by_name(layer)
    x, tangent = torch.randn(2, 4, IN, dtype=DOUBLE).unbind()
    ours = transform(lambda of, x: torch.func.functional_call(layer, of, (x,)), of, x, tangent)
    theirs = transform(lambda of, x: loop.with_entries(of, x), of, x, tangent)
    assert tree_map(torch.is_tensor, ours) == tree_map(torch.is_tensor, theirs)
    for one, other in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        assert other.abs().sum() > 0
        assert_near(one, other, 1e-10)


def test_what_autocast_lowered_is_not_differentiated_twice():
    layer, x = lora_linear(dtype=torch.float32), torch.randn(2, IN, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    with pytest.raises(UserError, match="leave autocast out"):
        torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
    out.sum().backward(retain_graph=True)
    assert x.grad is not None


def test_masked_copies_alone_can_be_differentiated_twice():
    """As the adapters and the prefix use them."""
    tied = lora_linear().lora_A
    bits = [mask_bits(CapaBoostConfig(r=RANK), "p", f"A.{index}", (RANK, IN)) for index in range(2)]
    masks = [torch.from_numpy(np.stack(bits)) >> copy & 1 for copy in range(2)]
    (gradient,) = torch.autograd.grad(tied.copies().pow(3).sum(), tied.packed, create_graph=True)
    gradient.sum().backward()
    dense = torch.zeros(2, RANK, IN, dtype=DOUBLE)
    dense[sum(masks) > 0] = 6 * tied.packed.detach().squeeze(1)
    torch.testing.assert_close(tied.packed.grad.squeeze(1), (dense * sum(masks))[sum(masks) > 0], rtol=1e-12, atol=0)
