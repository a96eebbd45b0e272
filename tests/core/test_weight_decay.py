"""Weight decay reaches the same parameters under timm's optimizers and our loop: matrices, packed ones too."""

import pytest
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from capaboost.training.optimize import _adamw
from capaboost.training.settings import TrainSection
from capaboost_core import trainable_parameters
from capaboost_core.sharing.tied import TiedWeight
from capaboost_core.task import Hooks
from tests.core.toy_model import adapted

METHODS = ("lora", "padapter", "hadapter")


def decayed(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def matrices(model):
    packed = {f"{name}.packed" for name, module in model.named_modules() if isinstance(module, TiedWeight)}
    assert len(packed) == 4  # of two layers
    return packed | {"head.weight"}


@pytest.mark.hard_case(20)
@pytest.mark.parametrize("method", METHODS)
def test_timm_decays_packed_weights(method):
    model = adapted(method)
    assert decayed(model, param_groups_weight_decay(model, 0.1)) == matrices(model)
    assert decayed(model, create_optimizer_v2(model, "adamw", weight_decay=0.1).param_groups) == matrices(model)


@pytest.mark.hard_case(20)
@pytest.mark.parametrize("decay_biases", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_our_loop_decays_the_same_and_biases_if_told_so(method, decay_biases):
    model = adapted(method)
    settings = TrainSection(weight_decay=0.1, decay_biases=decay_biases)
    optimizer = _adamw(trainable_parameters(model), settings, torch.device("cpu"), Hooks(model))
    expected = trainable_parameters(model).keys() if decay_biases else matrices(model)
    assert decayed(model, optimizer.param_groups) == expected
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trainable_parameters(model))


def test_a_vector_of_an_earlier_file_loads():
    model, fresh = adapted(), adapted()
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter)
    state = {k: v.squeeze(1) if k.endswith(".packed") else v for k, v in model.state_dict().items()}
    assert state["first.lora_A.packed"].ndim == 1
    fresh.load_state_dict(state)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in fresh.state_dict().items())
    assert state["first.lora_A.packed"].ndim == 1  # the caller's own is left alone
    del state["first.lora_A.packed"]
    with pytest.raises(RuntimeError, match=r"first\.lora_A"):
        fresh.load_state_dict(state)
