"""FacT's increments come from factors that all layers share, and from little that a layer has of its own."""

import copy
import math

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import capaboost_vision
from capaboost_core import UserError, merge, unload
from capaboost_core.injection import adapted_layers
from tests.compatibility.models import base
from tests.methods.cases import WIDTH, R, adapted, trained
from tests.methods.tied_by_hand import views
from tests.methods.vit_by_hand import DEPTH, IMAGES, vit_by_hand

NAMES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
each = pytest.mark.parametrize("method", ["fact-tt", "fact-tk"])


def increments_by_hand(model, method):
    """scale * sum_i V_i S U_i of each (width, width) matrix in its place of a weight, one matrix after the other."""
    outer = model.blocks[0].attn.qkv.outer
    pairs = list(zip(views(outer.v), views(outer.u), strict=True))
    found = {}
    for layer in adapted_layers(model):
        rows, columns = (size // WIDTH for size in layer.weight.shape)
        whole, own = torch.zeros(layer.weight.shape).double(), layer.inner.s.detach().double()
        for i in range(rows):
            for j in range(columns):
                if method.endswith("fact-tt"):
                    s = own[i * R : (i + 1) * R, j * R : (j + 1) * R]
                else:
                    s = sum(own[i * columns + j, c] * outer.core.detach().double()[:, :, c] for c in range(R))
                whole[i * WIDTH : (i + 1) * WIDTH, j * WIDTH : (j + 1) * WIDTH] = sum(v.T @ s @ u for v, u in pairs)
        found[layer.path] = 2.5 * whole
    return found


@pytest.mark.parametrize("method", ["fact-tt", "fact-tk", "capaboost-fact-tt", "capaboost-fact-tk"])
def test_written_out_and_merged(method):
    model = trained(method, "vit", scale=2.5).double()
    increments = increments_by_hand(model, method)
    assert increments.keys() == {f"blocks.{index}.{name}" for index in range(DEPTH) for name in NAMES}
    expected = vit_by_hand(lambda path, x, compute: compute(x) + (x @ increments[path].T if path in increments else 0))
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), expected)
        torch.testing.assert_close(merge(model)(IMAGES), expected)
        assert not torch.allclose(expected, vit_by_hand())
        plain = base("vit").double()
        plain.load_state_dict(unload(model).state_dict(), strict=True)
        torch.testing.assert_close(plain(IMAGES), expected)


@each
def test_the_factors_of_all_layers_are_one_also_in_a_copy(method):
    trained_model = trained(method, "vit")
    for model in (trained_model, copy.deepcopy(trained_model)):
        layers = adapted_layers(model)
        assert {id(layer.shared[0]) for layer in layers} == {id(model.blocks[0].attn.qkv.outer)}
        names = {name.partition(".outer.")[2] for name, _ in model.named_parameters() if ".outer." in name}
        assert names == {"fact-tt": {"u.packed", "v.packed"}, "fact-tk": {"u.packed", "v.packed", "core"}}[method]
        with torch.no_grad():
            before = [layer.merged_weight()[0] for layer in layers]
            layers[0].outer.u.packed.add_(1.0)
            assert not any(
                torch.allclose(layer.merged_weight()[0], old) for layer, old in zip(layers, before, strict=True)
            )


@each
def test_the_record_names_a_fused_layer_as_one(method):
    """Without slices, as all files of it have been written."""
    targets = adapted(method, "vit").capaboost.plan.targets
    assert [(target.path, target.slices) for target in targets if target.path.endswith("attn.qkv")] == [
        (f"blocks.{index}.attn.qkv", None) for index in range(DEPTH)
    ]


@each
def test_they_leave_the_meta_device_with_their_first_values(method):
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch16_224", num_classes=0, capaboost=method)
    outer = model.to_empty(device="cpu").blocks[0].attn.qkv.outer
    assert not outer.v.packed.any()
    assert 0.99 / math.sqrt(384) < outer.u.packed.abs().max() <= 1 / math.sqrt(384)
    bounds = {"fact-tt": lambda m: 1 / math.sqrt(m * 16), "fact-tk": lambda m: math.sqrt(6 / (32 + 144))}
    own = [layer.inner.s.flatten() / bounds[method](layer.in_features // 384) for layer in adapted_layers(model)]
    assert 0.99 < torch.cat(own).abs().max() <= 1
    if method == "fact-tk":
        assert 0.99 < outer.core.abs().max() * 32 / math.sqrt(3) <= 1


def test_a_value_between_s_and_v_is_dropped():
    layer = adapted("fact-tt", "vit", dropout=0.5).blocks[0].mlp.fc1.double().train()
    with torch.no_grad():
        layer.shared[0].v.packed.view(R, WIDTH).zero_()[:, :R] = torch.eye(
            R
        )  # so that the output begins with the hidden values
        hidden = layer.increment(torch.ones(50, WIDTH).double()).unflatten(-1, (4, WIDTH))[..., :R]
        kept = layer.eval().increment(torch.ones(1, WIDTH).double()).unflatten(-1, (4, WIDTH))[..., :R]
    dropped = hidden == 0
    assert 0.3 < dropped.double().mean() < 0.7
    torch.testing.assert_close(hidden, torch.where(dropped, 0.0, 2 * kept))


@each
def test_its_products_are_those_that_run(method):
    layer = adapted(method, "vit").blocks[0].mlp.fc2
    x = torch.zeros(3, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer.increment(x)
    core = 0 if method == "fact-tt" else 4 * R**3  # S of the core, whatever the rows
    assert counter.get_total_flops() // 2 == 3 * sum(product.executed for product in layer.macs(True)) + core


@each
def test_blocks_of_several_widths_are_refused(method):
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(UserError, match=f"{method} shares factors of one width, but 96, 192, 384, 768 are there"):
        capaboost_vision.inject(model, method)
