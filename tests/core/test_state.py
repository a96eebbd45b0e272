"""Adapter files come back exactly, from any wrapper: what is saved follows the plan, and is never unfit."""

import copy
import warnings
from pathlib import Path

import pytest
import timm.utils
import torch
from safetensors.torch import load_file
from torch import nn

from capaboost_core import UserError, load_adapter, merge, parameter_counts, save_adapter, trainable_parameters
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from tests.commands import finish, ranks
from tests.core.adapter_case import CONFIG, WEIGHTS, contents, edit_record, edit_tensors, saved
from tests.core.toy_model import X, adapted, fresh_base, randomise

ROOT = Path(__file__).parents[2]
METHODS = ["lora", "padapter", "hadapter", "linear", "full"]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DifferentBaseWarning)
        yield


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("into", ["base", "adapted"])
def test_round_trip(tmp_path, method, into):
    model = randomise(adapted(method))
    save_adapter(model, tmp_path)
    other = fresh_base() if into == "base" else adapted(method)
    state = torch.get_rng_state()
    loaded = load_adapter(other, tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(loaded(X), model(X))
    assert trainable_parameters(loaded).keys() == trainable_parameters(model).keys()


def test_file_holds_what_is_trained_and_no_masks(tmp_path):
    model = saved(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert stored.keys() == trainable_parameters(model).keys()
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in trainable_parameters(model).values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS, CONFIG]


@pytest.mark.hard_case(1)
@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_model_saves_the_same_file(tmp_path, method):
    model = saved(tmp_path, randomise(adapted(method)))
    before = contents(tmp_path)
    model.requires_grad_(False)
    save_adapter(model, tmp_path)
    assert contents(tmp_path) == before


FURTHER = {  # what is changed on the model: what is trained besides the plan
    "bias of a target": lambda model: [model.first.bias],
    "weight of a target": lambda model: [model.second.weight],
    "frozen head": lambda model: model.head.requires_grad_(False) and [],
}


@pytest.mark.hard_case(3)
@pytest.mark.parametrize("into", ["base", "adapted"])
@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("case", FURTHER)
def test_further_trained_parameters_and_a_frozen_head_come_back(tmp_path, case, into, merging):
    model = randomise(adapted())
    for parameter in FURTHER[case](model):
        nn.init.normal_(parameter.requires_grad_(True))
    expected = model(X)
    save_adapter(merge(model) if merging else model, tmp_path)
    loaded = load_adapter(fresh_base() if into == "base" else adapted(), tmp_path)
    assert torch.equal(loaded(X), expected)
    for parameter in FURTHER[case](loaded):
        assert parameter.requires_grad
    assert loaded.first.weight.requires_grad is False


def test_further_parameters_of_files_that_do_not_list_them_come_back(tmp_path):
    model = randomise(adapted())
    nn.init.normal_(model.first.bias.requires_grad_(True))
    save_adapter(model, tmp_path)
    edit_record(tmp_path, lambda record: [record.pop(key) for key in ("extra", "fingerprint")])
    assert torch.equal(load_adapter(fresh_base(), tmp_path)(X), model(X))


def without_layer(model):
    model.second = nn.Linear(32, 16)


def set_entry(value):
    def apply(model):
        with torch.no_grad():
            model.second.lora_A.packed[0] = value

    return apply


UNFIT = {
    "nan": (set_entry(float("nan")), "not finite"),
    "infinite": (set_entry(float("inf")), "not finite"),
    "nan in the head": (lambda model: nn.init.constant_(model.head.bias, float("nan")), "not finite"),
    "a layer removed": (without_layer, "second is not as inject left it"),
    "all layers removed": (lambda model: model.set_submodule("first", nn.Identity()), "first is not as inject"),
}


@pytest.mark.hard_case(1)
@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_adapter_never_replaces_a_good_one(tmp_path, case):
    model = saved(tmp_path)
    before = contents(tmp_path)
    change, hint = UNFIT[case]
    change(model)
    with pytest.raises(UserError, match=hint):
        save_adapter(model, tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match=hint):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_empty_adapter_is_refused(tmp_path):
    model = adapted("linear")
    model.head = nn.Identity()
    with pytest.raises(UserError, match="nothing that is trained"):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def alone():
    """A process group of one process, for DDP."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled_parts(model):
    model.second = torch.compile(model.second, backend="eager")
    return model


COMPILED = {
    "compile": lambda model: torch.compile(model, backend="eager"),
    "average": torch.optim.swa_utils.AveragedModel,
    "timm's average": timm.utils.ModelEmaV3,
    "average of compiled": lambda m: torch.optim.swa_utils.AveragedModel(torch.compile(m, backend="eager")),
    "DataParallel": nn.DataParallel,
}
WRAPPERS = COMPILED | {
    "compiled layer": compiled_parts,
    "DDP": nn.parallel.DistributedDataParallel,
    "compiled DDP": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="eager"),
}


@pytest.mark.hard_case(2, 23)
@pytest.mark.parametrize("case", WRAPPERS)
def test_a_wrapped_model_saves_and_loads_as_the_bare_one(tmp_path, case, alone):
    model = saved(tmp_path / "bare")
    wrapped = WRAPPERS[case](copy.deepcopy(model))
    assert parameter_counts(wrapped) == parameter_counts(model)
    assert trainable_parameters(wrapped).keys() == trainable_parameters(model).keys()
    save_adapter(wrapped, tmp_path / "wrapped")
    assert contents(tmp_path / "wrapped") == contents(tmp_path / "bare")
    other = WRAPPERS[case](adapted())
    assert load_adapter(other, tmp_path / "bare") is other
    assert torch.equal(other.module(X) if "average" in case else other(X), model(X))


@pytest.mark.hard_case(2)
@pytest.mark.parametrize("case", COMPILED)
def test_a_wrapped_base_takes_an_adapter(tmp_path, case):
    model = saved(tmp_path)
    wrapped = COMPILED[case](fresh_base())
    wrapped(X)  # compiled for the base
    assert load_adapter(wrapped, tmp_path) is wrapped
    assert torch.equal(wrapped.module(X) if "average" in case else wrapped(X), model(X))


def test_a_parallel_base_is_refused_for_it_would_not_train_the_adapter(tmp_path, alone):
    saved(tmp_path)
    with pytest.raises(UserError, match="load it before wrapping"):
        load_adapter(nn.parallel.DistributedDataParallel(fresh_base()), tmp_path)


@pytest.mark.hard_case(2)
def test_files_of_compiled_models_from_earlier_versions_load(tmp_path):
    model = saved(tmp_path)

    def as_compiled(tensors):
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    edit_tensors(tmp_path, as_compiled)
    assert torch.equal(load_adapter(fresh_base(), tmp_path)(X), model(X))


@pytest.mark.parametrize("stored", [(-1,), (-1, 1)])
@pytest.mark.parametrize("held", [(-1,), (-1, 1)])
def test_packed_entries_load_as_a_list_or_a_column(tmp_path, stored, held):
    model = saved(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({k: v.reshape(stored) for k, v in t.items() if k.endswith("packed")}))
    other = adapted()
    for layer in (other.first, other.second):
        for tied in (layer.lora_A, layer.lora_B):
            tied.packed = nn.Parameter(tied.packed.detach().reshape(held))
    load_adapter(other, tmp_path)
    for name, parameter in trainable_parameters(other).items():
        assert torch.equal(parameter.flatten(), model.get_parameter(name).flatten()), name


@pytest.mark.hard_case("messages")
def test_two_sharded_processes_save_the_file_of_one(tmp_path):
    assert finish(ranks(2, "-m", "tests.core.sharded_save", str(tmp_path))).count("done") == 2
