"""Layers that read one input share its copy in autocast's precision, and only then."""

import gc
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from capaboost_core.methods import lora_layer as module
from capaboost_core.methods.lora_layer import cast_once
from tests.core.fast_path_case import IN, WHOLE, lora_linear

LOW = torch.bfloat16


def layers():
    return [lora_linear(WHOLE, dtype=torch.float32) for _ in range(2)]


def held_of_input_size(run, numel: int) -> int:
    """Different memory of as many low-precision values that autograd holds after a forward pass."""
    held = {}
    with saved_tensors_hooks(lambda t: held.setdefault(t.data_ptr(), t) if t.dtype == LOW else t, lambda t: t):
        run()
    return sum(t.numel() == numel for t in held.values())


def test_query_and_value_hold_one_copy_of_their_input():
    query, value = layers()
    x = torch.randn(64, IN, requires_grad=True)
    with torch.autocast("cpu", LOW):
        assert held_of_input_size(lambda: (query(x), value(x)), x.numel()) == 1
        assert held_of_input_size(lambda: (query(x), value(x.clone())), x.numel()) == 2


def test_gradients_are_those_of_copies_apart(monkeypatch):
    def gradients(query, value, x):
        with torch.autocast("cpu", LOW):
            outs = query(x), value(x)
        (outs[0].float().square().sum() + outs[1].float().pow(3).sum()).backward()
        return [x.grad, *(p.grad for layer in (query, value) for p in layer.own_parameters().values())]

    start = torch.randn(64, IN)
    shared = gradients(*layers(), start.clone().requires_grad_())
    monkeypatch.setattr("capaboost_core.methods.lora_layer.cast_once", lambda x, dtype: x.to(dtype))
    apart = gradients(*layers(), start.clone().requires_grad_())
    assert shared[0].dtype == torch.float32
    for one, other in zip(shared, apart, strict=True):
        assert torch.equal(one, other)


def test_an_input_that_changed_in_place_is_lowered_anew():
    x = torch.zeros(4)
    first = cast_once(x, LOW)
    assert cast_once(x, LOW) is first
    assert cast_once(x, torch.float16).dtype == torch.float16
    x += 1
    assert torch.equal(cast_once(x, LOW), torch.ones(4, dtype=LOW))


@pytest.mark.parametrize("make", [lambda: torch.zeros(4), lambda: torch.zeros(4).view(2, 2)])
def test_nothing_is_kept_alive(make):
    x = make()
    copy = cast_once(x, LOW)
    alive = weakref.ref(x), weakref.ref(copy)
    del x, copy
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    assert module._last[0]() is None


def test_inference_mode_and_equal_types_need_no_copy_to_share():
    with torch.inference_mode():
        x = torch.ones(4)
        assert torch.equal(cast_once(x, LOW), x.to(LOW))
    y = torch.ones(4)
    assert cast_once(y, torch.float32) is y
