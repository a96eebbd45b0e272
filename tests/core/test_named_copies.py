"""Copies, moves and state dicts of a model with several adapters hold all of them."""

import copy
import io
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from capaboost_core import (
    UserError,
    active_adapter,
    adapter_names,
    set_adapter,
)
from tests.core.named_case import net, state
from tests.core.toy_model import X, fresh_base, garbage


def outputs(model):
    """Of each adapter."""
    active = active_adapter(model)
    x = X.to(next(model.parameters()).dtype)
    found = {name: set_adapter(model, name)(x).detach() for name in adapter_names(model)}
    set_adapter(model, active)
    return found


def through_a_file(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "there and back": lambda model: copy.deepcopy(model).double().float(),
    "meta, then loaded": lambda model: loaded(garbage(copy.deepcopy(model).to("meta")), model),
    "distributed checkpoint": lambda model: checkpointed(copy.deepcopy(model), model),
    "meta, then assigned": lambda model: loaded(copy.deepcopy(model).to("meta"), model, assign=True),
}


def checkpointed(model, source):
    set_model_state_dict(model, get_model_state_dict(source))
    return model


def loaded(model, source, **settings):
    model.load_state_dict(through_a_file(source), **settings)
    return model


@pytest.mark.parametrize("how", COPIES)
def test_adapters_that_are_not_active_are_moved_and_copied_with_the_model(how, tmp_path):
    model = net(tmp_path, "b", "bb")
    set_adapter(model, "b")
    expected, copied = outputs(model), COPIES[how](model)
    got = outputs(copied)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    for tensors in outputs(copied.double()).values():
        assert tensors.dtype == torch.float64
    assert all(torch.equal(now, expected[name]) for name, now in outputs(model).items())


def test_state_dicts_of_other_adapters_are_refused_before_anything_is_loaded(tmp_path):
    model = net(tmp_path, "b")
    first = model.state_dict()
    without_metadata = dict(first)
    single = {key: value for key, value in without_metadata.items() if "capaboost_adapters" not in key}
    set_adapter(model, "b")
    before = state(model)
    for given, message in ((first, "adapter 'default' is active"), (without_metadata, "has capaboost_adapters.b")):
        with pytest.raises(UserError, match=message):
            model.load_state_dict(given)
        assert state(model) == before
    set_adapter(model, "default")
    before = outputs(model)
    model.load_state_dict(single)
    model.load_state_dict(fresh_base().state_dict())  # leaves additions as they are
    assert outputs(model).keys() == before.keys()
