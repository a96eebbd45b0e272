"""RepAdapter's bottleneck stands before what reads its input, and is gone once merged."""

import pytest
import timm
import torch
from torch import nn

import capaboost_vision
from capaboost_core import UserError, merge, parameter_counts, unload
from capaboost_core.injection import adapted_layers
from capaboost_core.methods import Method
from tests.compatibility.models import VIT, base, logits
from tests.methods.cases import WIDTH, R, adapted, out, trained
from tests.methods.tied_by_hand import views
from tests.methods.vit_by_hand import IMAGES, vit_by_hand

SCALE = 2.5


def bottleneck_by_hand(layer, x):
    """scale * (sum_i U_i (D_i x + c) + e), each group of outputs from its own share of the hidden values."""
    (bottleneck,) = layer.shared
    c, total = bottleneck.down_bias.detach().double(), bottleneck.up_bias.detach().double()
    for down, up in zip(views(bottleneck.down), views(bottleneck.up), strict=True):
        hidden, share = x @ down.T + c, R // len(up)
        parts = [hidden[..., g * share : (g + 1) * share] @ up[g] for g in range(len(up))]
        total = total + torch.cat(parts, -1)
    return SCALE * total


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("preset", ["repadapter", "capaboost-repadapter"])
def test_written_out_and_merged(preset, groups):
    model = trained(preset, "vit", groups=groups, scale=SCALE).double()
    layers = {layer.path: layer for layer in adapted_layers(model)}
    assert {path.partition("blocks.")[2][2:] for path in layers} == {"attn.qkv", "mlp.fc1"}
    if preset == "repadapter":
        assert parameter_counts(model).trainable == 2 * 2 * (R * WIDTH * (1 + 1 / groups) + R + WIDTH)

    def act(path, x, compute):
        return compute(x + bottleneck_by_hand(layers[path], x) if path in layers else x)

    expected = vit_by_hand(act)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), expected)
        assert not torch.allclose(expected, vit_by_hand())
        torch.testing.assert_close(merge(model)(IMAGES), expected)
        plain = base("vit").double()
        plain.load_state_dict(unload(model).state_dict(), strict=True)
        torch.testing.assert_close(plain(IMAGES), expected)


def test_q_k_and_v_apart_read_through_one_bottleneck():
    model = trained("repadapter", "bert", scale=SCALE).double()
    plain, attention = base("bert").double(), "bert.encoder.layer.0.attention.self"
    parts = [model.get_submodule(f"{attention}.{name}") for name in ("query", "key", "value")]
    assert len({id(part.shared[0]) for part in parts}) == 1
    assert model.bert.encoder.layer[0].intermediate.dense.shared[0] is not parts[0].shared[0]
    x = torch.randn(3, WIDTH).double()
    for part in parts:
        frozen = plain.get_submodule(part.path)
        torch.testing.assert_close(part(x), frozen(x + bottleneck_by_hand(part, x)))
    before = logits(model)
    torch.testing.assert_close(logits(unload(model)), before)


def test_first_values_and_the_meta_device():
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch16_224", num_classes=0, capaboost="repadapter")
    model.to_empty(device="cpu")
    bound = (6 / (8 + 384)) ** 0.5
    for layer in adapted_layers(model):
        *others, down, up = layer.shared[0].parameters()
        others.append(up)
        assert 0.98 * bound < down.abs().max() <= bound
        assert not any(other.any() for other in others)


def test_hidden_values_are_dropped():
    bottleneck = adapted("repadapter", "vit", dropout=0.5).blocks[0].attn.qkv.shared[0].train()
    with torch.no_grad():
        nn.init.ones_(bottleneck.down_bias)
        nn.init.ones_(bottleneck.up.packed)
        found = bottleneck(torch.zeros(50, WIDTH))
    assert {*found.unique().tolist()} == {0.0, 2.0, 4.0}  # two hidden values a group, each kept as 2 or dropped


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="groups is 2; they share out the 3 hidden values; type a divisor of r"):
        Method("repadapter", r=3)
    model = base("vit")
    with pytest.raises(UserError, match=r"groups is 3, but blocks\.0\.attn\.qkv reads 16 values"):
        capaboost_vision.inject(model, Method("repadapter", r=3, groups=3))
    assert not hasattr(model, "capaboost")


def test_what_needs_a_bias_is_not_merged_without_one():
    model = capaboost_vision.inject(timm.create_model("vit_tiny_patch16_224", **VIT, qkv_bias=False), "repadapter")
    before = out(model.eval())
    with pytest.raises(UserError, match=r"has a shift for blocks\.0\.attn\.qkv, which has no bias, and cannot be"):
        merge(model)
    assert torch.equal(out(model), before)


def test_groups_of_nm_masks_are_checked_beside_the_groups_of_the_up_projection():
    assert Method(method="repadapter", mask="nm", n=1, m=4).density == 0.25
    with pytest.raises(UserError, match="needs n and m"):
        Method(method="repadapter", mask="nm", n=1)
