"""Copies made once for all layers in a forward pass: the same values and gradients, and never those of before."""

import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from capaboost_core import CapaBoostConfig, Plan, Target, inject, trainable_parameters, unload
from capaboost_core.sharing import tied as together
from tests.core.fast_path_case import ALPHA, DOUBLE, assert_near

WIDTH, DEPTH = 12, 4


class Net(nn.Module):
    """Layers in a row; some may be left out, and a call may happen before one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.skipped, self.before = set(), {}

    def forward(self, x):
        for index, layer in enumerate(self.layers):
            self.before.get(index, lambda: None)()
            x = x if index in self.skipped else layer(x).tanh()
        return x


def adapted(dtype=DOUBLE, **settings):
    torch.manual_seed(0)
    plan = Plan(tuple(Target(f"layers.{index}") for index in range(DEPTH)))
    model = inject(Net().to(dtype), CapaBoostConfig(r=4, alpha=ALPHA, **settings), plan)
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter)
    return model


def batch(dtype=DOUBLE):
    return torch.randn(5, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1))


def gradients(model, call):
    """Those of `call`'s output, and whether each parameter has one at all."""
    model.zero_grad()
    call(batch(next(model.parameters()).dtype)).double().square().sum().backward()
    return {name: p.grad for name, p in trainable_parameters(model).items()}


def alone(model):
    """The forward pass without the model's hooks, so that every layer makes its own copies."""
    return type(model).forward.__get__(model)


class Spreads(TorchDispatchMode):
    """Counts how often packed entries become copies."""

    times = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.times += func is torch.ops.aten.masked_scatter_.default
        return func(*args, **(kwargs or {}))


def spreads(call, *args):
    with Spreads() as counted:
        call(*args)
    return counted.times


def test_copies_are_made_once_in_a_pass_for_all_layers_of_one_shape():
    model = adapted()
    assert spreads(model, batch()) == 1  # A and B^T of a square layer have one shape
    assert spreads(alone(model), batch()) == 2 * DEPTH


@pytest.mark.parametrize("num_tied", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_outputs_and_gradients_are_those_of_layers_alone_bit_for_bit(num_tied, dtype):
    model = adapted(dtype, num_tied=num_tied)
    assert torch.equal(model(batch(dtype)), alone(model)(batch(dtype)))
    expected = gradients(model, alone(model))
    for name, gradient in gradients(model, model).items():
        assert torch.equal(gradient, expected[name]), name


def test_within_autocast_too():
    model = adapted(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = gradients(model, alone(model)), gradients(model, model)
    for name, gradient in actual.items():
        assert torch.equal(gradient, expected[name]), name


def test_many_entries_are_made_in_several_goes(monkeypatch):
    model = adapted()
    expected = gradients(model, model)
    monkeypatch.setattr(together, "LARGEST_GROUP", 3 * 4 * WIDTH)  # three of the eight weights
    assert spreads(model, batch()) == 3
    torch.testing.assert_close(gradients(model, model), expected, rtol=0, atol=0)


def test_a_layer_that_did_not_run_has_no_gradient():
    model = adapted()
    model.skipped = {1, 3}
    for name, gradient in gradients(model, model).items():
        assert (gradient is None) == name.startswith(("layers.1.", "layers.3.")), name
    assert all(g is None or g.abs().sum() > 0 for g in gradients(model, model).values())


def test_frozen_weights_stay_without_gradients():
    model = adapted()
    for parameter in model.layers[2].own_parameters().values():
        parameter.requires_grad_(False)
    needed = []
    model.before = {i: lambda i=i: needed.append(model.layers[i].lora_A.copies().requires_grad) for i in range(DEPTH)}
    model(batch())
    assert needed == [True, True, False, True]
    torch.testing.assert_close(gradients(model, model), gradients(model, alone(model)), rtol=0, atol=0)


def test_what_ran_without_gradients_leaves_those_of_the_others():
    model = adapted()
    model.before = {0: lambda: torch.set_grad_enabled(False), 2: lambda: torch.set_grad_enabled(True)}
    with torch.enable_grad():  # and as it was again, should this fail
        expected, actual = gradients(model, alone(model)), gradients(model, model)
    assert {name[:8] for name, gradient in expected.items() if gradient is not None} == {"layers.2", "layers.3"}
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@torch.no_grad()
def change(model):
    for parameter in trainable_parameters(model).values():
        parameter.mul_(2)


def changed():
    model = adapted()
    change(model)
    return model


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])  # torch calls no hook after the latter
def test_a_pass_that_fails_leaves_nothing_behind(error):
    model = adapted()

    def fail():
        raise error("stop")

    model.before = {2: fail}
    with pytest.raises(error, match="stop"):
        model(batch())
    change(model)
    model.before = {}
    assert torch.equal(model.layers[0](batch()), changed().layers[0](batch()))
    assert torch.equal(model(batch()), changed()(batch()))


def test_a_parameter_exchanged_within_a_pass_counts_from_there():
    """As hooks do that bring a layer's weights to the device just before it runs."""
    model = adapted()
    weight = model.layers[2].lora_B
    other = nn.Parameter(3 * weight.packed.detach())
    expected, before = adapted(), model(batch())
    expected.layers[2].lora_B.packed = nn.Parameter(other.detach().clone())
    model.before = {2: lambda: setattr(weight, "packed", other)}
    after = model(batch())
    assert not torch.equal(after, before)
    assert torch.equal(after, expected(batch()))


def test_a_model_in_a_model_uses_its_own():
    outer, inner = adapted(), adapted(seed=1)
    expected = inner(batch())
    found = []
    outer.before = {2: lambda: found.append(inner(batch()))}
    plain = alone(adapted())(batch())
    assert torch.equal(outer(batch()), plain)
    assert torch.equal(found[0], expected)


def test_threads_do_not_see_each_others_passes():
    first, second = adapted(), adapted(seed=1)
    both, ended = threading.Barrier(2, timeout=60), threading.Event()
    other = threading.Thread(target=second, args=(batch(),))
    first.before = {1: lambda: (other.start(), both.wait())}  # the second begins later and ends later
    second.before = {1: both.wait, 3: lambda: ended.wait(60)}
    first(batch())
    ended.set()
    other.join()
    change(first)
    assert torch.equal(first.layers[0](batch()), changed().layers[0](batch()))


def test_a_graph_can_be_gone_through_twice():
    model = adapted()
    loss = model(batch()).square().sum()
    first = torch.autograd.grad(loss, list(trainable_parameters(model).values()), retain_graph=True)
    (again,) = torch.autograd.grad(loss, model.layers[1].lora_A.packed)
    names = list(trainable_parameters(model))
    assert_near(again, first[names.index("layers.1.lora_A.packed")], 0)


def test_unloading_takes_the_hooks_along():
    model = unload(adapted())
    assert not {**model._forward_hooks, **model._forward_pre_hooks}
