"""Additions of peft that are made before the weights come start from these: loaded later, or off the meta device."""

import copy

import pytest
import torch

from capaboost_core import CapaBoostConfig, Plan, Target, UserError, inject, trainable_parameters
from tests.core.toy_model import Net, X, garbage

pytest.importorskip("peft", reason="the extra [peft] is not installed")

NAMES = ("dora", "rslora", "pissa", "adalora", "vera", "loha", "lokr", "ia3", "randlora", "shira")
PLAN = Plan((Target("first"), Target("second")), head=("head",))


def net(seed):
    torch.manual_seed(seed)
    return Net()


def adapted(name, seed=0):
    settings = {} if name == "ia3" else {"r": 4}
    return inject(net(seed), CapaBoostConfig(name, **settings), PLAN)


def step(model):
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), 0.1)
    model(X).square().sum().backward()
    optimizer.step()
    return model


@pytest.mark.parametrize("name", NAMES)
def test_loaded_later_the_weights_are_what_it_starts_from(name):
    model, base = adapted(name), net(1)
    model.load_state_dict(base.state_dict())
    torch.testing.assert_close(model(X), base(X), rtol=1e-5, atol=1e-5)
    expected = adapted(name, seed=1)
    for part in ("lora_magnitude_vector", "removed"):
        values = {k: v for k, v in expected.state_dict().items() if part in k}
        for key, value in values.items():
            torch.testing.assert_close(model.state_dict()[key].abs(), value.abs(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["dora", "pissa"])
def test_what_has_been_trained_is_kept_when_a_base_is_loaded(name):
    model = step(adapted(name))
    trained = {n: p.detach().clone() for n, p in trainable_parameters(model).items() if not n.startswith("head")}
    model.load_state_dict(net(1).state_dict())
    for parameter, value in trained.items():
        assert torch.equal(model.get_parameter(parameter), value)
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_off_the_meta_device_it_starts_as_the_base_and_trains(name):
    with torch.device("meta"):
        model = adapted(name)
    garbage(model)
    with pytest.raises(UserError, match="first has had no values since to_empty"):
        model(X)
    base = net(1)
    model.load_state_dict(base.state_dict())
    torch.testing.assert_close(model(X), base(X), rtol=1e-5, atol=1e-5)
    out = step(model)(X)
    assert out.isfinite().all()
    assert (out - base(X)).abs().max() > 0
    drawn = adapted(name, seed=1)
    for path in ("first", "second"):
        for key, value in drawn.get_submodule(path).drawn().items():
            assert (model.get_submodule(path).drawn()[key] == value).all()


@pytest.mark.parametrize("name", NAMES)
def test_off_the_meta_device_a_complete_state_gives_the_model_that_was_saved(name):
    with torch.device("meta"):
        model = adapted(name)
    garbage(model)
    expected = step(adapted(name, seed=1)).eval()
    model.load_state_dict(expected.state_dict())
    assert torch.equal(model.eval()(X), expected(X))
