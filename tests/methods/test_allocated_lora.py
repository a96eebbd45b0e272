"""Ranks that move between layers: what moves, that the budget holds at each step, and that all of it is kept."""

import copy
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capaboost.report.cost import adapter_file_bytes
from capaboost_core import UserError, load_adapter, merge, parameter_counts, save_adapter, save_peft
from capaboost_core.account import account_of
from capaboost_core.injection import adapted_layers, trainable_parameters
from capaboost_core.methods import resolve_config
from capaboost_core.methods.allocated_lora import Positions
from tests.compatibility.models import base, drawn, logits
from tests.methods.cases import R, out, put_in

STEPS, MOVING, INTERVAL = 24, 12, 3
PRESETS = ("lora-allocated", "capaboost-lora-allocated")
each_preset = pytest.mark.parametrize("preset", PRESETS)


def adapted(preset):
    """BERT, whose second layer starts with larger values, and so with larger sensitivities."""
    config = resolve_config(preset).replace(r=R, allocation_share=MOVING / STEPS, interval=INTERVAL)
    model = put_in(base("bert"), config).double()
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(drawn(name, tuple(parameter.shape), 0.3))
        for layer in adapted_layers(model)[2:]:
            for weight in (layer.lora_A, layer.lora_B):
                pool(model).entries[weight.slots[weight.slots >= 0]] *= 3
    return model


def pool(model):
    return adapted_layers(model)[0].pool


def train(model, first=1, last=STEPS):
    """Steps of gradient descent with the method's hook after each."""
    parameters, config = list(trainable_parameters(model).values()), model.capaboost.config
    for step in range(first, last + 1):
        for parameter in parameters:
            parameter.grad = None
        logits(model).square().sum().backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.003 * parameter.grad
            config.after_step(model, step, STEPS)
        yield step


def slots(model):
    return [weight.slots.clone() for layer in adapted_layers(model) for weight in (layer.lora_A, layer.lora_B)]


def entries(model):
    """Those of each increment of q and v."""
    return [
        sum(int((weight.slots >= 0).sum()) for weight in (layer.lora_A, layer.lora_B))
        for layer in adapted_layers(model)
    ]


@each_preset
def test_every_entry_has_one_place_at_each_step(preset):
    model = adapted(preset)
    budget = parameter_counts(model).trainable
    for _ in train(model):
        places = torch.cat(slots(model))
        assert places[places >= 0].sort().values.tolist() == list(range(budget))
        shown = [tied.copies() for layer in adapted_layers(model) for tied in (layer.lora_A, layer.lora_B)]
        assert sum(int(copies.any(-3).sum()) for copies in shown) <= budget
    assert parameter_counts(model).trainable == budget == len(pool(model).entries)


@each_preset
def test_ranks_move_at_intervals_of_the_first_part_to_where_they_matter(preset):
    model = adapted(preset)
    start, before, moved = entries(model), slots(model), []
    for step in train(model):
        after = slots(model)
        if not all(map(torch.equal, before, after)):
            moved.append(step)
        before = after
    assert moved == [3, 6, 9, 12]
    end = entries(model)
    assert sum(end) == sum(start)
    assert sum(end[2:]) > sum(start[2:])


def test_a_component_of_the_least_important_increment_goes_to_the_most_important_one():
    # Three increments with two components each, of three places; the entries of the first two are in component 0 and 1
    # of increment 0, then one component of each of the others.
    slots = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, -1, -1, -1, 9, 10, 11, -1, -1, -1])
    components = torch.arange(6).repeat_interleave(3)
    places = Positions(slots.clone(), components, torch.zeros(18), rows=2)
    score = torch.tensor([2.0] * 3 + [1.0] * 3 + [4.0] * 3 + [9.0] * 3)
    taken = places.move(score, pairs=1)
    assert taken.tolist() == [15, 16, 17]
    assert places.slots.tolist() == [0, 1, 2, -1, -1, -1, 6, 7, 8, -1, -1, -1, 9, 10, 11, 3, 4, 5]
    again = places.slots.clone()
    assert not len(places.move(score, pairs=3))  # each gives only while it has two components
    assert torch.equal(places.slots, again)


@each_preset
def test_moved_entries_add_nothing_at_first(preset):
    model = adapted(preset)
    *_, _ = itertools.takewhile(lambda step: step < INTERVAL - 1, train(model))
    before = slots(model)
    list(train(model, INTERVAL, INTERVAL))
    for place, (was, layer) in enumerate(zip(before[1::2], adapted_layers(model), strict=True)):
        fresh = (was < 0) & (layer.lora_B.slots >= 0)
        assert not layer.lora_B.packed[fresh].any(), place
        fresh = (before[2 * place] < 0) & (layer.lora_A.slots >= 0)
        assert layer.lora_A.packed[fresh].all()
        assert layer.lora_A.packed.detach()[fresh].abs().le(16**-0.5).all()


@each_preset
def test_files_merging_and_copies_keep_what_has_moved(preset, tmp_path):
    model = adapted(preset)
    list(train(model))
    before = out(model)
    save_adapter(model, tmp_path)
    again = load_adapter(base("bert").double(), tmp_path).eval()
    assert torch.equal(out(again), before)
    assert all(map(torch.equal, slots(again), slots(model)))
    assert adapter_file_bytes(account_of(model).everything) == (tmp_path / "adapter.safetensors").stat().st_size
    fresh = put_in(base("bert"), model.capaboost.config).double()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(out(fresh.eval()), before)
    assert torch.equal(out(copy.deepcopy(model)), before)
    save_peft(model, tmp_path / "peft")
    torch.testing.assert_close(out(merge(model)), before, atol=1e-9, rtol=1e-9)


@each_preset
@pytest.mark.parametrize("at", [2, 7, 20], ids=["before", "while they move", "after"])
def test_state_that_is_saved_and_put_back_goes_on_the_same(preset, at):
    whole = adapted(preset)
    list(train(whole))
    begun = adapted(preset)
    list(train(begun, last=at))
    state = copy.deepcopy(begun.capaboost.config.state(begun))
    again = adapted(preset)
    with torch.no_grad():
        for name, parameter in trainable_parameters(again).items():
            parameter.copy_(trainable_parameters(begun)[name])
        again.capaboost.config.load_state(again, state)
    list(train(again, first=at + 1))
    assert torch.equal(out(again), out(whole))


def test_a_largest_rank_below_r_is_refused():
    with pytest.raises(UserError, match="max_r"):
        resolve_config("lora-allocated").replace(r=8, max_r=4)


def test_copies_are_made_only_where_they_are_used():
    """What reads a pool has other entries each time, so it is not made ahead with other layers'."""
    model = adapted("capaboost-lora-allocated")
    with Scatters() as counted:
        logits(model)
    assert counted.times == 2 * len(adapted_layers(model))


class Scatters(TorchDispatchMode):
    """Counts how often entries are spread to their places."""

    times = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.times += func is torch.ops.aten.masked_scatter_.default
        return func(*args, **(kwargs or {}))
