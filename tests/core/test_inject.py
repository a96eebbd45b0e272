"""Injection into any model: base untouched, what is counted is what is trained, errors change nothing."""

import copy

import pytest
import torch
from torch import nn

from capaboost_core import (
    CapaBoostConfig,
    Plan,
    Target,
    UserError,
    disable,
    inject,
    parameter_counts,
    trainable_parameters,
)
from tests.core.toy_model import PLAN, Net, X, adapted, config_of, randomise


@pytest.mark.parametrize("method", ["lora", "padapter", "hadapter", "linear", "full"])
def test_output_and_state_of_the_base_stay(method):
    base = Net()
    before, keys = copy.deepcopy(base), base.state_dict().keys()
    out = base(X)
    model = inject(base, config_of(method), PLAN)
    assert torch.equal(model(X), out)
    assert keys <= model.state_dict().keys()
    for key in keys:
        assert torch.equal(model.state_dict()[key], before.state_dict()[key])


@pytest.mark.parametrize("method", ["lora", "padapter"])
def test_training_changes_the_adapter_and_the_head_only(method):
    model = adapted(method)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=0.1)
    for _ in range(3):
        model(X).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == trainable_parameters(model).keys()
    with disable(model):
        base = Net()
        base.load_state_dict({k: v for k, v in model.state_dict().items() if k in base.state_dict()})
        assert torch.equal(model(X), base(X))
    assert not torch.equal(model(X), base(X))


def test_counts_by_hand():
    counts = parameter_counts(adapted(num_tied=2, density=0.5))
    # kept entries of A (4, 16), B (16, 4), A (4, 32), B (16, 4), counted from the masks themselves
    kept = sum(int((t.bits != 0).sum()) for t in adapted().modules() if hasattr(t, "bits"))
    assert (counts.trainable, counts.head, counts.total) == (kept, 51, 16 * 32 + 32 + 32 * 16 + 16)
    assert parameter_counts(adapted(num_tied=1, density=1.0)).trainable == 4 * (16 + 16 + 32 + 16)
    adapter = parameter_counts(adapted("padapter", num_tied=1, density=1.0))
    assert adapter.trainable == (2 * 4 * 32 + 4 + 32) + (2 * 4 * 16 + 4 + 16)
    assert parameter_counts(adapted("linear")).trainable == 0
    full = parameter_counts(adapted("full"))
    assert (full.trainable, full.percent) == (full.total, 100)


def test_base_checkpoint_loads_strictly_but_a_partial_adapter_does_not():
    model = randomise(adapted())
    base = Net().state_dict()
    adapter = model.first.lora_A.packed.clone()
    model.load_state_dict(base)
    assert torch.equal(model.first.weight, base["first.weight"])
    assert torch.equal(model.first.lora_A.packed, adapter)
    state = model.state_dict()
    del state["first.lora_A.packed"]
    with pytest.raises(RuntimeError, match=r"first\.lora_A"):
        model.load_state_dict(state)


def test_explicit_suffixes_match_whole_components():
    model = inject(Net(), CapaBoostConfig(targets=["second"]))
    assert type(model.first) is nn.Linear
    assert type(model.second) is not nn.Linear
    with pytest.raises(UserError, match=r"econd.*first"):
        inject(Net(), CapaBoostConfig(targets=["econd"]))


WRONG = [
    (Net, CapaBoostConfig(), None, "depends on the architecture"),
    (Net, CapaBoostConfig(), Plan(()), "nothing to adapt"),
    (Net, CapaBoostConfig(), Plan((Target("first"), Target("third"))), "third is a NoneType"),
    (Net, CapaBoostConfig("linear"), Plan(()), "num_classes"),
    (Net, CapaBoostConfig(mask="nm", n=2, m=3, r=4), PLAN, "multiple of 3"),
    (adapted, CapaBoostConfig(), PLAN, "adapted already"),
]


@pytest.mark.parametrize(("make", "config", "plan", "hint"), WRONG, ids=[w[3] for w in WRONG])
def test_errors_leave_the_model_as_it_was(make, config, plan, hint):
    model = make()
    modules, flags = list(model.named_modules()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(UserError, match=hint):
        inject(model, config, plan)
    assert [(n, id(m)) for n, m in model.named_modules()] == [(n, id(m)) for n, m in modules]
    assert [p.requires_grad for p in model.parameters()] == flags


def test_attention_that_bypasses_its_projection_is_refused():
    with pytest.raises(UserError, match="NonDynamicallyQuantizableLinear"):
        inject(nn.MultiheadAttention(16, 2), CapaBoostConfig(targets=["out_proj"]))


def test_half_precision_base_has_a_single_precision_adapter():
    half = inject(Net().bfloat16(), CapaBoostConfig(r=4), PLAN)
    assert half.first.lora_A.packed.dtype == torch.float32
    assert half(X.bfloat16()).dtype == torch.bfloat16


def test_a_rank_above_the_width_is_said_once():
    with pytest.warns(UserWarning, match="r is 17, above the width 16 of first: that adds no rank; lower r") as said:
        inject(Net(), CapaBoostConfig(r=17), PLAN)
    assert len(said) == 1
