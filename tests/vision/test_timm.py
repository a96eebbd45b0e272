"""Every supported timm family: identical at the start, alive in q and v, silent in k, mergeable."""

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

import capaboost_vision
from capaboost_core import (
    PRESETS,
    CapaBoostConfig,
    UserError,
    load_adapter,
    merge,
    parameter_counts,
    save_adapter,
    trainable_parameters,
    unmerge,
)
from tests.vision.models import FAMILIES, SMALL, create, image

METHODS = ["capaboost-lora", "capaboost-padapter", "capaboost-hadapter"]


def pair(name, capaboost):
    """A base model and the same model adapted."""
    adapted = create(name, capaboost)
    base = create(name)
    base.load_state_dict({k: v for k, v in adapted.state_dict().items() if k in base.state_dict()})
    return base, adapted


def randomise(model):
    for name, parameter in trainable_parameters(model).items():
        if "lora_" in name or "adapter." in name:
            nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_starts_as_the_base_and_is_alive(name, method):
    base, adapted = pair(name, method)
    x = image(base)
    with torch.no_grad():
        expected = base(x)
        torch.testing.assert_close(adapted(x), expected, rtol=1e-5, atol=1e-6)
        if not adapted.capaboost.plan.required_flags:
            assert torch.equal(adapted(x), expected)
        adapted.load_state_dict(base.state_dict())  # a base checkpoint loads strictly
        randomise(adapted)
        assert (adapted(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_every_increment_reaches_the_loss(name):
    _, adapted = pair(name, "capaboost-lora")
    randomise(adapted)
    adapted(image(adapted)).square().sum().backward()
    for parameter_name, parameter in trainable_parameters(adapted).items():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_is_the_base_with_changed_q_and_v_rows(name):
    """Add the increments by hand to a plain model: same output; k rows are not touched."""
    base, adapted = pair(name, "capaboost-lora")
    randomise(adapted)
    x = image(base)
    modules = dict(base.named_modules())
    with torch.no_grad():
        for path, layer in adapted.named_modules():
            if not hasattr(layer, "delta_weights"):
                continue
            weight = modules[path].weight
            rows = weight.shape[0] // 3 if path.endswith("qkv") else weight.shape[0]
            q, *v = layer.delta_weights()
            weight[:rows] += q
            if path.endswith("qkv"):
                weight[-rows:] += v[0]
            else:
                assert path.endswith(("q_proj", "v_proj"))
        expected = base(x)
        torch.testing.assert_close(adapted(x), expected, rtol=1e-4, atol=1e-4)
        before = adapted(x)
        torch.testing.assert_close(merge(adapted)(x), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(unmerge(adapted)(x), before)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_base_patch14_224", "swinv2_tiny_window8_256"])
def test_all_linear_reaches_six_matrices(name):
    _, adapted = pair(name, {"targets": "all-linear", "r": 4})
    paths = {
        target.path.split("blocks.0.")[1] for target in adapted.capaboost.plan.targets if "blocks.0." in target.path
    }
    assert {"attn.proj", "mlp.fc2"} <= paths
    assert paths >= ({"attn.q_proj", "attn.k_proj"} if "eva02" in name else {"attn.qkv"})
    randomise(adapted)
    adapted(image(adapted)).sum().backward()
    assert all(p.grad is not None for p in trainable_parameters(adapted).values())


def test_paper_counts_of_vit_base():
    plain = timm.create_model("vit_base_patch16_224", num_classes=47, capaboost="lora")
    tied = timm.create_model("vit_base_patch16_224", num_classes=47, capaboost="capaboost-lora")
    assert parameter_counts(plain).trainable == 294_912
    assert parameter_counts(tied).trainable == pytest.approx(221_184, rel=0.01)
    assert parameter_counts(tied).head == 768 * 47 + 47
    assert parameter_counts(tied).total == 85_798_656


def test_registry_and_pretrained_cfgs_stay():
    model = timm.create_model("vit_base_patch16_224.orig_in21k", depth=1, embed_dim=48, num_heads=3, capaboost="lora")
    assert model.pretrained_cfg["hf_hub_id"] == "timm/vit_base_patch16_224.orig_in21k"
    assert resolve_model_data_config(model)["mean"] == (0.5, 0.5, 0.5)
    assert "vit_base_patch16_224.augreg_in21k" in timm.list_pretrained("vit_base_patch16_224*")
    assert timm.is_model_pretrained("deit3_small_patch16_224")


def test_unsupported_models_are_refused_by_name():
    for name in ("resnet18", "vgg11"):
        with pytest.raises(UserError, match=r"does not support (ResNet|VGG)"):
            timm.create_model(name, capaboost="lora")
    with pytest.raises(UserError, match="unknown preset"):
        timm.create_model("vit_tiny_patch16_224", capaboost="capa")
    assert type(timm.create_model("resnet18")).__name__ == "ResNet"


@pytest.mark.parametrize("value", ["capaboost-lora", PRESETS["capaboost-lora"], {"r": 8}])
def test_config_dict_and_preset_are_the_same(value):
    assert create("vit_tiny_patch16_224", value).capaboost.config == CapaBoostConfig()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_saved_adapter_loads_into_a_plain_model(tmp_path, name):
    base, adapted = pair(name, "capaboost-lora")
    randomise(adapted)
    save_adapter(adapted, tmp_path)
    x = image(base)
    with torch.no_grad():
        assert torch.equal(load_adapter(base, tmp_path)(x), adapted(x))
    with pytest.raises(UserError, match="trained on"):
        load_adapter(create("swin_tiny_patch4_window7_224"), tmp_path)


def test_inject_takes_models_made_elsewhere():
    model = create("vit_tiny_patch16_224")
    assert capaboost_vision.inject(model, "padapter") is model
    assert parameter_counts(model).trainable == 2 * (2 * 8 * 48 + 8 + 48)


def test_base_weights_from_a_checkpoint_file(tmp_path):
    """timm's own `checkpoint_path` loads strictly into the adapted model."""
    base = create("vit_tiny_patch16_224")
    torch.save(base.state_dict(), tmp_path / "base.pth")
    nn.init.ones_(base.head.weight)
    settings = SMALL | FAMILIES["vit_tiny_patch16_224"]
    model = timm.create_model(
        "vit_tiny_patch16_224", checkpoint_path=tmp_path / "base.pth", capaboost="capaboost-lora", **settings
    )
    assert torch.equal(model.blocks[1].attn.qkv.weight, base.blocks[1].attn.qkv.weight)
