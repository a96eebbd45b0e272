"""An unloaded model is the plain one of its library: its state dict, its layers, its outputs."""

import pickle
from collections import Counter

import pytest
import timm
import torch
from torch import nn

from capaboost_core import UserError, inject, save_adapter, trainable_parameters, unload
from tests.compatibility.models import BASES, adapt, base, drawn, logits

METHODS = {
    "lora": dict(method="lora", r=4),
    "lora on all": dict(method="lora", r=4, targets="all-linear"),
    "padapter": dict(method="padapter", r=4),
    "hadapter": dict(method="hadapter", r=4),
    "prefix": dict(method="prefix", r=4),
    "linear": dict(method="linear"),
}
CASES = [
    (kind, method)
    for kind in BASES
    for method in METHODS
    if (kind, method) != ("beit", "prefix")  # has no form there
]


def trained(kind: str, method: str) -> nn.Module:
    model = adapt(base(kind), METHODS[method])
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(drawn(name, tuple(parameter.shape), 0.2))
    return model.eval()


def layout(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "method"), [case for case in CASES if "lora" in case[1] or case[1] == "linear"])
def test_merged_it_loads_strictly_into_a_plain_model_with_the_same_outputs(kind, method):
    model = trained(kind, method)
    expected = logits(model)
    plain = unload(model)
    assert layout(plain) == layout(BASES[kind]())
    fresh = BASES[kind]().eval()
    fresh.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(logits(fresh), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_dropped_it_is_the_base_with_the_trained_head(kind, method):
    model = trained(kind, method)
    head = {name: p.clone() for name, p in trainable_parameters(model).items() if name in base(kind).state_dict()}
    plain = unload(model, merge=False)
    expected = base(kind)
    expected.load_state_dict(head, strict=False)
    assert layout(plain) == layout(expected)
    assert plain.state_dict().keys() == expected.state_dict().keys()
    assert torch.equal(logits(plain), logits(expected))
    for path, module in expected.named_modules():
        other = plain.get_submodule(path)
        assert getattr(other, "qkv_bias_separate", None) == getattr(module, "qkv_bias_separate", None)


@pytest.mark.parametrize("method", ["padapter", "hadapter", "prefix"])
def test_what_cannot_be_merged_is_refused_and_stays(method):
    model = trained("vit", method)
    before = layout(model), logits(model)
    with pytest.raises(UserError, match="cannot be merged"):
        unload(model)
    assert layout(model) == before[0]
    assert torch.equal(logits(model), before[1])


def test_another_adapter_can_go_in(tmp_path):
    model = adapt(unload(trained("vit", "lora")), METHODS["padapter"])
    save_adapter(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.safetensors", "capaboost_config.json"}


def test_hooks_and_later_changes_of_the_base_stay():
    model, calls = nn.Sequential(nn.Linear(4, 3)), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    inject(model, dict(r=2, targets=["0"]))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    plain = unload(model, merge=False)
    plain(torch.ones(1, 4))
    assert calls == [1]
    assert type(plain[0]) is nn.Linear
    assert (plain[0].weight == 2).all()


def test_a_full_size_vit_loads_strictly_into_plain_timm():
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=5, capaboost="capaboost-lora")
    timm.create_model("vit_small_patch16_224", num_classes=5).load_state_dict(unload(model).state_dict(), strict=True)


@pytest.mark.parametrize("settings", [*METHODS.values(), dict(method="vpt-deep"), dict(method="adamix")], ids=str)
def test_it_leaves_no_hook_and_is_stored_without_this_package(settings):
    plain = base("vit")
    before = hooks(plain)
    for _ in range(2):
        unload(adapt(plain, settings), merge=False)
    assert hooks(plain) == before
    assert b"capaboost" not in pickle.dumps(plain)


def hooks(model: nn.Module) -> dict[str, int]:
    """How many hooks the modules have, by the container's name."""
    kinds = Counter()
    for module in model.modules():
        kinds.update({name: len(held) for name, held in vars(module).items() if name.endswith("_hooks")})
    return kinds
