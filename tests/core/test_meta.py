"""A model made on the meta device gets its masks, and its start, with its memory."""

import copy

import pytest
import torch
from torch import nn

from capaboost_core import parameter_counts, trainable_parameters
from capaboost_core.sharing.tied import TiedWeight
from tests.core.toy_model import Net, X, adapted, garbage, randomise

SETTINGS = [
    {"method": "lora"},
    {"method": "lora", "num_tied": 8, "density": 0.3},
    {"method": "lora", "num_tied": 1, "density": 1.0},
    {"method": "lora", "mask": "nm", "n": 2, "m": 4},
    {"method": "padapter"},
    {"method": "padapter", "init": "official"},
]
parametrize = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def on_meta(settings):
    with torch.device("meta"):
        return adapted(**settings)


def masks(model):
    return {
        f"{name}.{buffer}": getattr(module, buffer)
        for name, module in model.named_modules()
        if isinstance(module, TiedWeight)
        for buffer in ("bits", "flags")
    }


def assert_same_masks(model, expected):
    assert masks(model).keys() == masks(expected).keys() != set()
    for name, mask in masks(model).items():
        assert torch.equal(mask, masks(expected)[name])


@pytest.mark.hard_case(22)
@parametrize
def test_masks_are_right_after_to_empty_and_a_state_dict(settings):
    expected, model = randomise(adapted(**settings)).eval(), on_meta(settings).eval()
    assert parameter_counts(model) == parameter_counts(expected)
    garbage(model)
    assert_same_masks(model, expected)
    model.load_state_dict(expected.state_dict())
    assert torch.equal(model(X), expected(X))


@pytest.mark.hard_case(22)
def test_to_empty_itself():
    model = on_meta({}).to_empty(device="cpu")
    assert_same_masks(model, adapted())


@pytest.mark.hard_case(22)
@parametrize
def test_masks_are_right_after_a_state_dict_is_assigned(settings):
    expected, model = randomise(adapted(**settings)).eval(), on_meta(settings).eval()
    model.load_state_dict(copy.deepcopy(expected.state_dict()), assign=True)
    assert_same_masks(model, expected)
    assert torch.equal(model(X), expected(X))


@pytest.mark.hard_case(22)
@parametrize
def test_a_base_checkpoint_is_enough_to_start_training(settings):
    model, base = garbage(on_meta(settings)), Net()
    model.load_state_dict(base.state_dict())
    expected, fresh = adapted(**settings), trainable_parameters(model)
    for name, parameter in trainable_parameters(expected).items():
        if not name.startswith("head"):
            assert fresh[name].std().item() == pytest.approx(parameter.std().item(), rel=0.6)
            assert fresh[name].isfinite().all()
    if settings.get("init") != "official":
        assert torch.equal(model(X), base(X))
    model(X).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in fresh.values())


@pytest.mark.hard_case(22)
@parametrize
def test_masks_outlive_every_move(settings):
    model, expected = randomise(adapted(**settings)).eval(), adapted(**settings)
    out, state = model(X), copy.deepcopy(model.state_dict())
    assert_same_masks(model.double(), expected)
    assert_same_masks(garbage(model.float()), expected)  # no way over the meta device
    garbage(model.to("meta"))
    assert_same_masks(model, expected)
    model.load_state_dict(state)
    assert torch.equal(model(X), out)
    twin = copy.deepcopy(copy.deepcopy(model).to("meta"))
    assert_same_masks(garbage(twin), expected)


def test_a_move_keeps_the_values():
    model = randomise(adapted("padapter"))
    values = copy.deepcopy(model.state_dict())
    model.double().float().to("cpu")
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
