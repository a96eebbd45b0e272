"""SSF and the Hadamard adapter: a scale and a shift after the right layers, which merge without a trace."""

import pytest
import timm
import torch
from torch import nn

import capaboost_vision
from capaboost_core import UserError, merge, unload
from capaboost_core.injection import adapted_layers
from tests.compatibility.models import VIT, base, logits
from tests.methods.cases import adapted, out, trained
from tests.methods.vit_by_hand import DEPTH, IMAGES, vit_by_hand

PLACES = {
    "ssf": {"patch_embed.proj", "norm"}
    | {
        f"blocks.{index}.{layer}"
        for index in range(DEPTH)
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    },
    "hadamard": {f"blocks.{index}.{layer}" for index in range(DEPTH) for layer in ("attn.proj", "norm2")},
}
each = pytest.mark.parametrize("method", PLACES)


@each
def test_written_out(method):
    model = trained(method, "vit").double()
    values = {layer.path: layer.scale_shift for layer in adapted_layers(model)}
    assert values.keys() == PLACES[method]

    def act(path, x, compute):
        if path not in PLACES[method]:
            return compute(x)
        return values[path].scale.detach() * compute(x) + values[path].shift.detach()

    with torch.no_grad():
        ours = model(IMAGES)
    torch.testing.assert_close(ours, vit_by_hand(act))
    assert not torch.allclose(ours, vit_by_hand())


@each
@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_merged_for_good_it_is_a_plain_model_that_computes_the_same(method, kind):
    model, plain = trained(method, kind).double(), base(kind).double()
    with torch.no_grad():
        before = logits64(model)
        torch.testing.assert_close(logits64(merge(model)), before)
        plain.load_state_dict(unload(model).state_dict(), strict=True)
        torch.testing.assert_close(logits64(plain), before)


def logits64(model):
    return logits(model) if hasattr(model, "config") else model(IMAGES)


def test_the_first_values():
    layers = adapted_layers(capaboost_vision.inject(timm.create_model("vit_small_patch16_224", num_classes=0), "ssf"))
    scales, shifts = (torch.cat([getattr(layer.scale_shift, name) for layer in layers]) for name in ("scale", "shift"))
    for values, mean in ((scales, 1), (shifts, 0)):
        assert values.mean().item() == pytest.approx(mean, abs=1e-3)
        assert values.std().item() == pytest.approx(0.02, rel=0.05)
    for layer in adapted_layers(adapted("hadamard", "vit")):
        assert torch.equal(layer.scale_shift.scale, torch.ones_like(layer.scale_shift.scale))
        assert not layer.scale_shift.shift.any()


def test_they_leave_the_meta_device_with_their_first_values():
    with torch.device("meta"):
        model = capaboost_vision.inject(timm.create_model("vit_tiny_patch16_224", **VIT), "hadamard")
    model.to_empty(device="cpu")
    scales = [layer.scale_shift.scale for layer in adapted_layers(model)]
    assert all(torch.equal(scale, torch.ones_like(scale)) for scale in scales)


def test_a_shift_of_a_layer_without_bias_is_not_merged():
    model = capaboost_vision.inject(timm.create_model("vit_tiny_patch16_224", **VIT, qkv_bias=False), "ssf").eval()
    before = out(model)
    with pytest.raises(UserError, match=r"ssf has a shift for blocks\.0\.attn\.qkv, which has no bias, and cannot"):
        merge(model)
    assert torch.equal(out(model), before)


def test_hadamard_without_norms():
    model = adapted("hadamard", "vit", norms=False)
    assert [layer.path for layer in adapted_layers(model)] == [f"blocks.{i}.attn.proj" for i in range(DEPTH)]
    assert all(isinstance(layer, nn.Linear) for layer in adapted_layers(model))
