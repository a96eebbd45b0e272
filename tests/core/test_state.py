"""Adapter files come back exactly, and a wrong one leaves the model as it was."""

import json

import pytest
import torch
from safetensors.torch import load_file

from capaboost_core import CapaBoostConfig, UserError, inject, load_adapter, save_adapter, trainable_parameters
from tests.core.test_inject import PLAN, Net, X, adapted, randomise

METHODS = ["lora", "padapter", "hadapter", "linear", "full"]


def fresh_base():
    torch.manual_seed(0)
    return Net()


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
    model = randomise(adapted())
    save_adapter(model, tmp_path)
    stored = load_file(tmp_path / "adapter.safetensors")
    assert stored.keys() == trainable_parameters(model).keys()
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in trainable_parameters(model).values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "adapter_config.json"]


def truncate(folder):
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def edit(**changes):
    def apply(folder):
        path = folder / "adapter_config.json"
        record = json.loads(path.read_text())
        for key, value in changes.items():
            record[key] = record[key] | value if isinstance(value, dict) else value
        path.write_text(json.dumps(record))

    return apply


def other_weights(folder):
    save_adapter(randomise(inject(fresh_base(), CapaBoostConfig(r=4, seed=5), PLAN)), folder / "other")
    (folder / "other" / "adapter.safetensors").rename(folder / "adapter.safetensors")


DAMAGE = [
    (truncate, "truncated"),
    (lambda folder: (folder / "adapter.safetensors").unlink(), "missing"),
    (lambda folder: (folder / "adapter.safetensors").write_text("PNG"), "truncated"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "save_adapter"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "no capaboost"),
    (edit(format="peft"), "no capaboost"),
    (edit(base_model="ViT"), "trained on ViT"),
    (edit(mask_checksum="0"), "masks"),
    (edit(config={"seed": 1}), "masks"),
    (edit(config={"r": 8}), "masks"),
    (edit(config={"rank": 8}), "unknown adapter setting"),
    (other_weights, "different adapters"),
]


@pytest.mark.parametrize(("damage", "hint"), DAMAGE, ids=[str(i) for i in range(len(DAMAGE))])
def test_damaged_files_leave_the_model_as_it_was(tmp_path, damage, hint):
    save_adapter(randomise(adapted()), tmp_path)
    damage(tmp_path)
    model = fresh_base()
    modules, out = [id(m) for m in model.modules()], model(X)
    with pytest.raises(UserError, match=hint) as caught:
        load_adapter(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert [id(m) for m in model.modules()] == modules
    assert torch.equal(model(X), out)
    assert all(p.requires_grad for p in model.parameters())


def test_other_configuration_and_other_head_are_named(tmp_path):
    save_adapter(randomise(adapted()), tmp_path)
    with pytest.raises(UserError, match=r"alpha: None there, 3\.0 here"):
        load_adapter(adapted(alpha=3), tmp_path)
    wider = fresh_base()
    wider.head = torch.nn.Linear(16, 7)
    with pytest.raises(UserError, match="num_classes"):
        load_adapter(wider, tmp_path)
