"""AdaLoRA's schedule, step by step against peft's own, and what a checkpoint keeps of it."""

import copy

import peft
import pytest
import torch

from capaboost_core import trainable_parameters
from capaboost_core.injection import adapted_layers
from capaboost_core.methods import resolve_config
from tests.compatibility.models import base, drawn, logits
from tests.methods.cases import R, put_in

STEPS, PHASES = 20, dict(initial_share=0.2, final_share=0.3, interval=3)
START = 6


def adapted():
    model = put_in(base("bert"), resolve_config("adalora", r=R, **PHASES)).double()
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(drawn(name, tuple(parameter.shape), 0.3))
    return model


def descend(model, parameters):
    """A step of gradient descent, whose gradients stay as the hooks find them."""
    for parameter in parameters:
        parameter.grad = None
    loss = logits(model).square().sum()
    loss.backward()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.01 * parameter.grad


def values(model):
    return {layer.path: layer.peft.lora_E["default"].detach().clone() for layer in adapted_layers(model)}


def train(model, first=1, last=STEPS):
    parameters, config = list(trainable_parameters(model).values()), model.capaboost.config
    for step in range(first, last + 1):
        descend(model, parameters)
        with torch.no_grad():
            config.after_step(model, step, STEPS)
        yield values(model)


def stock(ours):
    model, paths = base("bert"), [layer.path for layer in adapted_layers(ours)]
    schedule = dict(init_r=START, target_r=R, total_step=STEPS, tinit=4, tfinal=6, deltaT=3)
    places = dict(target_modules=paths, modules_to_save=["classifier"])
    config = peft.AdaLoraConfig(lora_alpha=16, beta1=0.85, beta2=0.85, **schedule, **places)
    tuned = peft.get_peft_model(model, config).double().eval()
    for layer in adapted_layers(ours):
        model.get_submodule(layer.path).load_state_dict(layer.peft.state_dict(), strict=False)
    model.classifier.modules_to_save["default"].load_state_dict(ours.classifier.state_dict())
    return model, tuned


def test_each_step_leaves_the_ranks_that_peft_leaves():
    ours = adapted()
    model, tuned = stock(ours)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ranks = []
    for step, found in enumerate(train(ours), start=1):
        descend(model, parameters)
        tuned.base_model.update_and_allocate(step)
        for path, e in found.items():
            theirs = model.get_submodule(path).lora_E["default"].detach()
            torch.testing.assert_close(e, theirs, atol=1e-12, rtol=1e-9)
        ranks.append(sum(int(e.count_nonzero()) for e in found.values()))
    layers = len(adapted_layers(ours))
    assert ranks[:5] == [START * layers] * 5  # the first phase, and up to the next step that 3 divides
    assert START * layers > ranks[5] > R * layers
    assert ranks[13:] == [R * layers] * 7  # from step 14 on
    assert len({int(e.count_nonzero()) for e in found.values()}) > 1  # on average, not each


def test_what_is_kept_stays_so_to_the_end():
    *_, before, last = train(adapted())
    for path, e in last.items():
        assert torch.equal(e == 0, before[path] == 0)


@pytest.mark.parametrize("at", [2, 7, 16], ids=["before", "while they fall", "after"])
def test_state_that_is_saved_and_put_back_goes_on_the_same(at):
    whole = adapted()
    *_, expected = train(whole)
    begun = adapted()
    list(train(begun, last=at))
    state = copy.deepcopy(begun.capaboost.config.state(begun))
    again = adapted()
    with torch.no_grad():
        for name, parameter in trainable_parameters(again).items():
            parameter.copy_(trainable_parameters(begun)[name])
    again.capaboost.config.load_state(again, state)
    *_, found = train(again, first=at + 1)
    for path, e in expected.items():
        assert torch.equal(found[path], e)


def test_a_run_of_one_step_or_two_ends():
    for steps in (1, 2):
        model = adapted()
        parameters, config = list(trainable_parameters(model).values()), model.capaboost.config
        for step in range(1, steps + 1):
            descend(model, parameters)
            with torch.no_grad():
                config.after_step(model, step, steps)
        assert any(e.any() for e in values(model).values())


def test_the_penalty_is_the_mean_distance_from_orthogonal_factors():
    model = adapted()
    distances = []
    for layer in adapted_layers(model):
        a, b = (getattr(layer.peft, name)["default"].detach() for name in ("lora_A", "lora_B"))
        for gram in (a @ a.T, b.T @ b):
            distances.append(float((gram - torch.eye(START)).square().sum().sqrt()))
    penalty = model.capaboost.config.penalty(model)
    assert penalty.item() == pytest.approx(0.1 * sum(distances) / len(distances), rel=1e-12)
    penalty.backward()
    assert all(layer.peft.lora_B["default"].grad.any() for layer in adapted_layers(model))
