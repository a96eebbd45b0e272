"""Every family of timm's table: each role is a matrix whose increment changes the output, and starts at the base's."""

import pytest
import timm
import torch
import torchvision
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import nn

import capaboost_core
import capaboost_vision
from capaboost_core import (
    CapaBoostConfig,
    UserError,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    unload,
    unmerge,
)
from capaboost_core.injection import adapted_layers
from capaboost_core.liveness import NoEffectWarning
from capaboost_core.plan import MATRICES
from capaboost_vision.roles import FAMILIES, roles_of

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 5}
MVIT = {"embed_dim": 24, "depths": (1, 1), "num_heads": 1}  # of the configuration, which timm keeps by name
NAMES = {  # a tiny variant, its size, and its class in the table
    "vit_tiny_patch16_224": ({"img_size": 32, **SMALL}, "VisionTransformer"),
    "beit_base_patch16_224": ({"img_size": 32, **SMALL}, "Beit"),
    "eva02_tiny_patch14_224": ({"img_size": 28, **SMALL}, "Eva"),
    "swin_tiny_patch4_window7_224": (SWIN, "SwinTransformer"),
    "swinv2_tiny_window8_256": (SWIN, "SwinTransformerV2"),
    "naflexvit_base_patch16_gap": ({"img_size": 32, **SMALL}, "NaFlexVit"),
    "pit_ti_224": (
        {"img_size": 64, "base_dims": [8, 8, 8], "depth": [1, 1, 1], "heads": [2, 4, 8], "num_classes": 5},
        "PoolingVisionTransformer",
    ),
    "mvitv2_tiny": ({"img_size": 64, "num_classes": 5, **MVIT}, "MultiScaleVit"),
    "hiera_tiny_224": (
        {"img_size": 64, "embed_dim": 24, "num_heads": 1, "stages": (1, 1, 1, 1), "num_classes": 5},
        "Hiera",
    ),
    "xcit_nano_12_p16_224": ({"img_size": 32, **SMALL}, "Xcit"),
    "cait_xxs24_224": ({"img_size": 32, **SMALL}, "Cait"),
    "vit_relpos_small_patch16_224": ({"img_size": 32, **SMALL}, "VisionTransformerRelPos"),
    "samvit_base_patch16": (
        {"img_size": 64, "global_attn_indexes": (1,), "window_size": 2, "neck_chans": 16, **SMALL},
        "VisionTransformerSAM",
    ),
    "maxvit_tiny_tf_224": ({"img_size": 64, "num_classes": 5}, "MaxxVit"),
}
# Of these only some modules have a role: TinyViT keeps q, k and v of each head together, ConvNeXt has no attention.
PARTIAL = {"tiny_vit_5m_224": "TinyVit", "test_convnext": "ConvNeXt"}
every_name = pytest.mark.parametrize("name", NAMES)


def create(name: str, **adapter) -> nn.Module:
    torch.manual_seed(0)
    make = {"mvitv2_tiny": multi_scale_vit, "maxvit_tiny_tf_224": max_vit}.get(name, timm.create_model)
    model = make(name, **NAMES[name][0]).eval().double()
    drawn(model)
    return capaboost_vision.inject(model, {"r": 4, **adapter}) if adapter else model


def drawn(model: nn.Module) -> nn.Module:
    """The model with other values; zero or tiny scales at the start would hide every change."""
    for key, parameter in model.named_parameters():  # zero or tiny scales at the start would hide every change
        if parameter.ndim == 1 and key.split(".")[-1].rstrip("0123456789_") in ("weight", "gamma"):
            nn.init.ones_(parameter)
        elif "logit" not in key:
            nn.init.normal_(parameter, std=0.15)
    return model


def multi_scale_vit(name: str, img_size: int, num_classes: int, **sizes) -> MultiScaleVit:
    model = MultiScaleVit(MultiScaleVitCfg(**sizes), (img_size, img_size), num_classes=num_classes)
    model.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()
    return model


def max_vit(name: str, img_size: int, num_classes: int, head_first: bool = False) -> MaxxVit:
    transformer = MaxxVitTransformerCfg(dim_head=8, head_first=head_first, window_size=(2, 2), grid_size=(2, 2))
    cfg = MaxxVitCfg(
        embed_dim=(16, 24), depths=(1, 1), block_type=("M", "M"), stem_width=8, transformer_cfg=transformer
    )
    model = MaxxVit(cfg, (img_size, img_size), num_classes=num_classes)
    model.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()
    return model


@torch.no_grad()
def output(name: str, model: nn.Module) -> torch.Tensor:
    side = NAMES[name][0]["img_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    return model(images)


def test_every_family_is_here():
    assert {*(kind for _, kind in NAMES.values()), *PARTIAL.values()} == {cls.__name__ for cls in FAMILIES}


@every_name
def test_is_of_its_family_and_has_every_role_in_every_block(name):
    model = create(name)
    assert NAMES[name][1] in [cls.__name__ for cls in type(model).__mro__]
    roles = roles_of(model)
    for block in roles.blocks:
        for role in MATRICES:
            assert block.modules_for([role]), role
    assert isinstance(model.get_submodule(roles.embedding), nn.Module)
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    inner = [path for path in linear if ".mlp." in path and ".rel_pos." not in path]
    assert {*inner} <= {place.path for block in roles.blocks for place in block.modules_for(MATRICES)}


@every_name
@pytest.mark.parametrize("role", MATRICES)
def test_every_role_is_alive(name, role):
    """Another matrix in the place of one role alone changes the output, in the first block and in the last."""
    model = create(name)
    expected, blocks = output(name, model), roles_of(model).blocks
    for place in [*blocks[0].modules_for([role]), *blocks[-1].modules_for([role])]:
        weight = model.get_submodule(place.path).weight.data
        rows = weight if place.rows is None else weight[slice(*place.rows)]
        before = rows.clone()
        rows.add_(torch.randn_like(rows))
        assert (output(name, model) - expected).abs().max() > 1e-6, place
        rows.copy_(before)


@every_name
def test_all_linear_starts_as_the_base_is_alive_and_merges(name):
    base, model = create(name), create(name, targets="all-linear")
    expected = output(name, base)
    torch.testing.assert_close(output(name, model), expected)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.lora_B.packed, std=0.1)
        assert (output(name, model) - expected).abs().max() > 1e-6, layer.path
        nn.init.zeros_(layer.lora_B.packed)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.lora_B.packed, std=0.1)
    changed = output(name, model)
    torch.testing.assert_close(output(name, merge(model)), changed)
    torch.testing.assert_close(output(name, unload(model)), changed)


@every_name
@pytest.mark.parametrize("method", ["padapter", "hadapter"])
def test_adapters_start_as_the_base_and_are_alive(name, method):
    model = create(name, method=method)
    expected = output(name, create(name))
    torch.testing.assert_close(output(name, model), expected)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.adapter.up.packed)
        assert (output(name, model) - expected).abs().max() > 1e-6, layer.path
        nn.init.zeros_(layer.adapter.up.packed)


@every_name
def test_only_additions_and_the_head_train(name):
    model = create(name, method="lora")
    head = {key for key in trainable_parameters(model) if "lora_" not in key}
    assert head == {f"{prefix}.{kind}" for prefix in roles_of(create(name)).head for kind in ("weight", "bias")}


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize("targets", [["qkv"], ["qkv", "fc1"]])
def test_through_the_core_a_weight_that_is_read_past_its_layer_is_refused(name, targets):
    model = timm.create_model(name, **NAMES[name][0])
    with pytest.raises(UserError, match=r"bypasses .*qkv, whose additions have no effect"):
        capaboost_core.inject(model, CapaBoostConfig(targets=targets))
    assert all(parameter.requires_grad for parameter in model.parameters())
    capaboost_core.inject(model, CapaBoostConfig(targets=["attn.proj"]))


def test_a_model_of_torchvision_is_watched():
    model = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2])
    capaboost_core.inject(model, CapaBoostConfig(targets=["qkv"]))
    with pytest.warns(NoEffectWarning, match="SwinTransformer bypasses 2 adapted layers"):
        model(torch.zeros(1, 3, 32, 32))


ONES, TWOS = (1, 1, 1, 1), (2, 2, 2, 2)
TINY_VIT = {"embed_dims": (8, 8, 16, 16), "depths": ONES, "num_heads": ONES, "window_sizes": TWOS}
ANY = {  # models with and without a row of the table, the side of their images, and layers to adapt
    "test_convnext": ({}, 32, ["mlp.fc1", "mlp.fc2"]),
    "tiny_vit_5m_224": (TINY_VIT, 64, ["attn.qkv", "attn.proj", "mlp.fc1"]),
    "test_efficientnet": ({}, 32, None),
    "mixer_s32_224": ({"img_size": 64}, 64, ["mlp_tokens.fc1"]),
    "convit_tiny": ({"img_size": 32, "embed_dim": 16, "depth": 2}, 32, ["attn.qk", "attn.v"]),
    "davit_tiny": ({"embed_dims": (8, 8), "depths": (1, 1), "num_heads": (1, 1), "window_size": 4}, 32, ["attn.qkv"]),
    "edgenext_xx_small": ({}, 64, ["xca.qkv", "mlp.fc2"]),
    "pvt_v2_b0": ({"depths": ONES}, 64, ["attn.q", "attn.kv"]),
    "levit_128s": ({}, 224, ["attn.qkv.linear"]),
}


def any_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return drawn(timm.create_model(name, num_classes=5, **ANY[name][0]).double().eval())


@pytest.mark.parametrize("name", [name for name, (_, _, targets) in ANY.items() if targets])
def test_explicit_targets_adapt_any_class(name, tmp_path):
    """Forward, backward, merge, save and load; the head is the one that timm records."""
    _, side, targets = ANY[name]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    base = any_model(name)
    model = capaboost_vision.inject(any_model(name), {"r": 2, "targets": targets})
    with torch.no_grad():
        expected = base(images)
    torch.testing.assert_close(model(images), expected)
    paths = [layer.path for layer in adapted_layers(model)]
    assert paths
    assert all(path.endswith(tuple(targets)) for path in paths)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.lora_B.packed, std=0.3)
    changed = model(images)
    assert not torch.allclose(changed, expected)
    changed.square().sum().backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())
    changed = changed.detach()
    head = {key for key in trainable_parameters(model) if "lora_" not in key}
    assert head == {key for key, _ in base.named_parameters() if key.startswith(tuple(roles_of(base).head))}
    torch.testing.assert_close(merge(model)(images), changed)
    unmerge(model)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(any_model(name), tmp_path).eval()(images), changed)
    torch.testing.assert_close(unload(model)(images), changed)


@pytest.mark.parametrize("name", ANY)
def test_presets_say_which_targets_to_give(name):
    """In one line, with ends of paths that `targets` takes."""
    with pytest.raises(UserError) as caught:
        capaboost_vision.inject(any_model(name), "capaboost-lora")
    message = str(caught.value)
    assert "\n" not in message
    if ANY[name][2] is None:
        assert "has no linear layer to adapt" in message
        return
    named = message.partition("[")[2].partition("]")[0].split(", ")
    capaboost_vision.inject(any_model(name), {"r": 2, "targets": named})


def test_what_needs_no_block_adapts_any_class():
    model = capaboost_vision.inject(timm.create_model("test_efficientnet", num_classes=5), "linear")
    assert {*trainable_parameters(model)} == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", PARTIAL)
def test_the_feed_forward_part_of_partial_families_has_its_roles(name):
    model = capaboost_vision.inject(any_model(name), {"method": "padapter", "r": 2})
    assert {layer.path.rpartition(".")[2] for layer in adapted_layers(model)} == {"fc2"}
    nn.init.normal_(adapted_layers(model)[0].adapter.up.packed)
    images = torch.randn(1, 3, ANY[name][1], ANY[name][1]).double()
    assert not torch.equal(model(images), any_model(name)(images))


def test_q_k_and_v_of_each_head_together_are_not_taken_for_thirds():
    model = max_vit("maxvit_tiny_tf_224", 64, 5, head_first=True)
    with pytest.raises(UserError, match=r"MaxxVit keeps q, k and v of each head together .*\[attn.qkv, attn.proj\]"):
        capaboost_vision.inject(model, "lora")
