"""What every registered method promises, on a tiny timm model and a tiny BERT.

A method that is special in more than its class says gets tests of its own beside these.
"""

import copy
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from capaboost.report.cost import Cost, ModelFactory, cost_of
from capaboost.training.loop import fit
from capaboost.training.optimize import make_accelerator
from capaboost.training.settings import TrainSection
from capaboost_core import (
    UserError,
    disable,
    inject,
    load_adapter,
    merge,
    parameter_counts,
    save_adapter,
    trainable_parameters,
    unmerge,
)
from capaboost_core.injection import adapted_layers
from capaboost_core.methods import METHODS, PRESETS, Method, resolve_config
from tests.compatibility.models import base, drawn, logits
from tests.methods.cases import (
    ADDED,
    DEPTH,
    KINDS,
    ONLY,
    UNSEEN,
    Examples,
    adapted,
    added,
    each_case,
    each_preset,
    out,
    prompted,
    prompts,
    put_in,
    rows_at_first,
    settings,
    trained,
)


def test_every_method_is_held_to_the_contract():
    assert {preset.method for preset in PRESETS.values()} == METHODS.keys() == ADDED.keys()


@each_case
def test_the_start_is_the_base_where_that_is_promised(preset, kind):
    torch.manual_seed(0)  # Compacter's first values of 1e-4 may be lost in rounding
    model = adapted(preset, kind)
    assert torch.equal(out(model), out(base(kind))) == model.capaboost.config.starts_as_base


@each_case
def test_every_trainable_parameter_matters(preset, kind):
    model = trained(preset, kind)
    before = out(model)
    for name, parameter in trainable_parameters(model).items():
        if name.endswith(UNSEEN):
            continue
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(drawn(f"change of {name}", tuple(parameter.shape), 1.0))
            assert not torch.equal(out(model), before), name
            parameter.copy_(kept)


@each_case
def test_gradients_reach_what_trains_and_nothing_else(preset, kind):
    model = trained(preset, kind)
    logits(model).square().sum().backward()
    trains = trainable_parameters(model)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trains), name
        if name in trains and not name.endswith(UNSEEN):
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@each_case
def test_the_count_is_the_sum_over_the_blocks(preset, kind):
    model = adapted(preset, kind)
    counts, (matrices, others, *once) = parameter_counts(model), added(model.capaboost.config.method, kind)
    masks = [tied.bits.numpy() for layer in adapted_layers(model) for tied in layer.tied_weights().values()]
    assert sum(bits.size for bits in masks) == DEPTH * matrices
    head = [p for name, p in base(kind).named_parameters() if name.startswith(("head.", "classifier."))]
    body = sum(p.numel() for p in base(kind).parameters()) - sum(p.numel() for p in head)
    filled = rows_at_first(model.capaboost.config)
    kept = sum(np.count_nonzero(bits[..., filled, :]) for bits in masks) + DEPTH * others + sum(once)
    assert counts.trainable == (body if model.capaboost.config.trains("any") else kept)
    assert (counts.head, counts.total) == (sum(p.numel() for p in head), body)


@each_case
@pytest.mark.parametrize("into", ["base", "adapted"])
def test_saved_and_loaded_it_computes_the_same(preset, kind, into, tmp_path):
    model = trained(preset, kind)
    save_adapter(model, tmp_path)
    again = load_adapter(base(kind) if into == "base" else adapted(preset, kind), tmp_path).eval()
    assert torch.equal(out(again), out(model))
    assert trainable_parameters(again).keys() == trainable_parameters(model).keys()


@each_case
def test_state_dict_pickle_and_copy_compute_the_same(preset, kind):
    model = trained(preset, kind)
    again = adapted(preset, kind)
    again.load_state_dict(model.state_dict())
    for other in (again, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(out(other), out(model))


@each_case
def test_it_merges_or_says_in_a_line_why_not(preset, kind):
    model = trained(preset, kind)
    before = out(model)
    if all(layer.mergeable for layer in adapted_layers(model)):
        torch.testing.assert_close(out(merge(model)), before, atol=1e-4, rtol=1e-4)
        assert torch.equal(out(unmerge(model)), before)
        return
    with pytest.raises(UserError, match="cannot be merged") as refusal:
        merge(model)
    assert "\n" not in str(refusal.value)
    assert torch.equal(out(model), before)


@each_case
def test_disabled_it_is_the_base(preset, kind):
    model = trained(preset, kind)
    before = out(model)
    with disable(model):
        assert torch.equal(out(model), out(base(kind)))
    assert torch.equal(out(model), before)


def train(preset: str, kind: str, folder, stops=False, resume=False) -> nn.Module:
    torch.manual_seed(0)
    model = adapted(preset, kind, dropout=0.5)
    chosen = TrainSection(epochs=2, batch_size=1, lr=0.01, warmup_ratio=0.0)
    fit(make_accelerator(chosen, folder), model, Examples(stops), chosen, folder, {}, resume=resume)
    return model


@each_case
def test_a_resumed_run_is_the_same_to_the_bit(preset, kind, tmp_path):
    whole = train(preset, kind, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(preset, kind, tmp_path / "cut", stops=True)
    resumed = train(preset, kind, tmp_path / "cut", resume=True)
    start = trainable_parameters(adapted(preset, kind))
    ends = trainable_parameters(whole), trainable_parameters(resumed)
    for name, parameter in ends[0].items():
        assert torch.equal(parameter, ends[1][name]), name
    assert not all(torch.equal(parameter, start[name]) for name, parameter in ends[0].items())


@cache
def cost(preset: str, kind: str) -> Cost:
    inputs = {"x": torch.zeros(1, 3, 32, 32)} if kind == "vit" else {"input_ids": torch.full((1, 5), 2)}
    return cost_of(ModelFactory(lambda: base(kind), put_in, inputs), settings(preset))


@each_case
def test_the_flop_report_counts_it(preset, kind):
    ours, probe, model = cost(preset, kind), cost("linear", kind), adapted(preset, kind)
    rows = (32 // 16) ** 2 + 1 if kind == "vit" else 5
    products = [product for layer in adapted_layers(model) for product in layer.macs(True)]
    assert ours.trainable == parameter_counts(model).trainable
    times = [1 if product.per_call else rows + prompts(settings(preset)) for product in products]
    executed, kept = (
        sum(n * getattr(product, name) for n, product in zip(times, products, strict=True))
        for name in ("executed", "kept")
    )
    frozen = prompted(settings(preset), rows)
    assert ours.forward.executed - probe.forward.executed == executed + frozen
    assert ours.forward.effective - probe.forward.effective == kept + frozen
    assert ours.step.executed >= probe.step.executed
    assert ours.unsupported == {}


@each_preset
def test_a_model_that_it_is_not_made_for_is_refused_in_a_line(preset):
    config = settings(preset)
    for kind in {*KINDS} - {*ONLY.get(config.method, KINDS)}:
        with pytest.raises(UserError, match=config.method) as refusal:
            put_in(base(kind), config)
        assert "\n" not in str(refusal.value)


@each_preset
def test_settings_are_known_named_and_read_back(preset):
    config = settings(preset)
    assert resolve_config(preset).label == preset
    assert Method.from_dict(config.to_dict()) == config == pickle.loads(pickle.dumps(config)) == copy.deepcopy(config)
    for make in (Method.from_dict, lambda values: inject(base("vit"), values)):
        with pytest.raises(UserError, match="no_such_setting") as refusal:
            make(config.to_dict() | {"no_such_setting": 1})
        assert "\n" not in str(refusal.value)
