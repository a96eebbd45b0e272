"""Adapters' activation, and their place after the dropout of a layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from capaboost_core import CapaBoostConfig, Plan, Target, UserError, inject, load_adapter, save_adapter
from capaboost_core.methods import PRESETS

WIDTH, R = 6, 4
PLAIN = {"num_tied": 1, "density": 1.0}
PLAN = Plan((Target("1", follows="0"),), head=())


class Block(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))


def adapted(place=PLAN, **settings):
    method = "hadapter" if place is PLAN else "padapter"
    model = inject(Block(), {"method": method, "r": R, "init": "official", **PLAIN, **settings}, place)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model


def bottleneck(adapter, h, activation):
    down, up = (tied.copies()[0] for tied in (adapter.down, adapter.up))
    return activation(h @ down.T + adapter.down_bias) @ up + adapter.up_bias


@pytest.mark.parametrize(
    ("name", "activation"), [("relu", torch.relu), ("swish", lambda x: x * torch.sigmoid(x)), ("gelu", F.gelu)]
)
def test_activation_by_its_definition(name, activation):
    model = adapted(Plan((Target("0"),)), activation=name).eval()
    x = torch.randn(3, WIDTH)
    h = F.linear(x, model[0].weight, model[0].bias)
    assert torch.allclose(model(x), h + bottleneck(model[0].adapter, h, activation), atol=1e-5)


def test_hadapters_presets_have_its_sources_activation():
    swish = {name for name, preset in PRESETS.items() if getattr(preset, "activation", None) == "swish"}
    assert swish == {"hadapter", "capaboost-hadapter"}
    assert CapaBoostConfig.from_dict({"method": "hadapter"}).activation == "relu"  # adapter files that do not say
    with pytest.raises(UserError, match="type relu, swish or gelu"):
        CapaBoostConfig("padapter", activation="tanh")


def test_after_dropout_the_bottleneck_sees_what_was_dropped():
    model = adapted().train()
    x = torch.randn(3, WIDTH)
    torch.manual_seed(1)
    found = model(x)
    torch.manual_seed(1)
    z = F.dropout(model[0](x), 0.5)
    assert (z == 0).any()
    assert torch.allclose(found, z + bottleneck(model[1].adapter, z, torch.relu), atol=1e-5)


def test_the_place_survives_a_file(tmp_path):
    model = adapted(after_dropout=True).eval()
    save_adapter(model, tmp_path)
    loaded = load_adapter(Block(), tmp_path).eval()
    x = torch.randn(3, WIDTH)
    assert torch.equal(loaded(x), model(x))


def test_after_dropout_is_hadapters():
    with pytest.raises(UserError, match="after_dropout is true; it means nothing to method lora"):
        CapaBoostConfig("lora", after_dropout=True)


def test_a_dropout_without_its_linear_layer_is_refused():
    block = Block()
    with pytest.raises(UserError, match="target 1 is a dropout; name the linear layer"):
        inject(block, {"method": "hadapter", "after_dropout": True}, Plan((Target("1"),)))
    assert type(block[1]) is nn.Dropout


def test_a_plan_of_version_0_1_0_is_read():
    target = {"path": "1", "slices": None}
    assert Plan.from_dict({"targets": [target], "head": [], "switches": []}) == Plan((Target("1"),))
