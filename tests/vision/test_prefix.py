"""timm's attention with a prefix against attention written out, and every family that has that attention."""

import copy

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import nn

import capaboost_vision
from capaboost_core import (
    CapaBoostConfig,
    Plan,
    Target,
    UserError,
    disable,
    load_adapter,
    parameter_counts,
    save_adapter,
    trainable_parameters,
)
from capaboost_core.injection import inject
from tests.core.prefix_by_hand import copies_by_hand
from tests.vision.models import create, image

CONFIG = CapaBoostConfig("prefix", r=4)
PLAIN = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch14_dinov2",
    "vit_giant_patch14_dinov2",
    "capaboost_vit_micro_patch8_64",
]
OTHERS = {
    "beit_base_patch16_224": "beit.Attention",
    "eva02_tiny_patch14_224": "eva.EvaAttention",
    "vit_small_patch16_dinov3": "eva.EvaAttention",
    "swin_tiny_patch4_window7_224": "swin_transformer.WindowAttention",
    "swinv2_tiny_window8_256": "swin_transformer_v2.WindowAttention",
}


def with_prefix(name, config=CONFIG):
    """A model whose prefix is large enough to be seen."""
    model = capaboost_vision.inject(create(name), config)
    torch.manual_seed(2)
    for parameter_name, parameter in trainable_parameters(model).items():
        if ".prefix." in parameter_name:
            nn.init.normal_(parameter)
    return model


ATTENTIONS = [
    {"qkv_bias": True},
    {"qk_norm": True, "norm_layer": nn.LayerNorm},
    {"qkv_bias": True, "gated": True, "scale_norm": True, "norm_layer": nn.LayerNorm, "attn_head_dim": 6},
]
MASKS = {
    "none": {},
    "bool": {"attn_mask": torch.ones(5, 5).tril(1).bool()},
    "added": {"attn_mask": torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)).double()},
    "causal": {"is_causal": True},
}


def written_out(base, x, keys, values, attn_mask=None, is_causal=False):
    """Attention with explicit concatenation, one image and one head at a time."""
    size, heads = base.head_dim, base.num_heads
    if is_causal:
        attn_mask = torch.ones(5, 5).tril().bool()
    rows = []
    for index, tokens in enumerate(x):
        q, k, v = base.qkv(tokens).chunk(3, dim=-1)
        parts = []
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            key = torch.cat([keys[:, cut], base.k_norm(k[:, cut])])
            scores = base.q_norm(q[:, cut]) @ key.T / size**0.5
            if attn_mask is not None:
                mask = attn_mask if attn_mask.ndim == 2 else attn_mask[index, 0]
                added = mask if mask.is_floating_point() else torch.zeros(5, 5).masked_fill(~mask, -torch.inf)
                scores[:, len(keys) :] += added
            parts.append(scores.softmax(-1) @ torch.cat([values[:, cut], v[:, cut]]))
        out = base.norm(torch.cat(parts, dim=-1))
        rows.append(base.proj(out * base.gate(tokens).sigmoid() if base.gate is not None else out))
    return torch.stack(rows)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("settings", ATTENTIONS, ids=["plain", "qk_norm", "gated"])
def test_attention_written_out(settings, mask, fused):
    torch.manual_seed(0)
    base = Attention(24, num_heads=3, **settings).double().eval()
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    net = nn.Sequential(copy.deepcopy(base))
    net[0].fused_attn = fused
    x = torch.randn(2, 5, 24).double()
    inject(net, CONFIG, Plan((Target("0"),)))
    for parameter in trainable_parameters(net).values():
        nn.init.normal_(parameter)
    prefix, width = net[0].prefix, base.attn_dim
    keys = copies_by_hand(CONFIG, "0", "keys", prefix.keys, width)
    values = copies_by_hand(CONFIG, "0", "values", prefix.values, width)
    torch.testing.assert_close(net[0](x, **mask), written_out(base, x, keys, values, **mask))
    with disable(net):
        base.fused_attn = fused
        assert torch.equal(net[0](x, **mask), base(x, **mask))


@pytest.mark.parametrize("name", PLAIN)
def test_every_block_has_a_live_prefix(name):
    base, model = create(name), with_prefix(name)
    x = image(base)
    assert base.state_dict().keys() <= model.state_dict().keys()
    with torch.no_grad():
        expected = base(x)
        model.load_state_dict(base.state_dict())
        with disable(model):
            assert torch.equal(model(x), expected)
    out = model(x)
    assert (out - expected).abs().max() > 1e-3
    out.square().sum().backward()
    trained = {n: p for n, p in trainable_parameters(model).items() if ".prefix." in n}
    assert len(trained) == 2 * 2  # two blocks, keys and values
    for parameter_name, parameter in trained.items():
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_round_trip_copy_and_checkpointing(tmp_path):
    model = with_prefix("vit_tiny_patch16_224")
    x = image(model)
    save_adapter(model, tmp_path)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(load_adapter(create("vit_tiny_patch16_224"), tmp_path)(x), expected)
    twin = copy.deepcopy(model).train()
    nn.init.zeros_(twin.blocks[0].attn.prefix.values.packed)
    assert torch.equal(model(x), expected)
    gradients = []
    for checkpointing in (False, True):
        twin.set_grad_checkpointing(checkpointing)
        twin.zero_grad()
        twin(x).square().sum().backward()
        gradients.append(twin.blocks[0].attn.prefix.keys.packed.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", OTHERS)
def test_other_attentions_are_refused_by_name(name):
    model = create(name)
    modules, flags = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(UserError, match=rf"attn, a timm.models.{OTHERS[name]}; choose lora"):
        capaboost_vision.inject(model, "capaboost-prefix")
    assert [type(m) for m in model.modules()] == modules
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not hasattr(model, "capaboost")


def test_create_model_and_counts():
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5, "img_size": 32}
    plain = timm.create_model("vit_tiny_patch16_224", capaboost="prefix", **sizes)
    assert parameter_counts(plain).trainable == 2 * 2 * 8 * 48
    tied = timm.create_model("vit_tiny_patch16_224", capaboost="capaboost-prefix", **sizes)
    assert parameter_counts(tied).trainable == pytest.approx(0.75 * 2 * 2 * 8 * 48, rel=0.05)
    assert tied.blocks[0].attn.prefix.length == 16
