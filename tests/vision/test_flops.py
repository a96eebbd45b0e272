"""Multiply-adds of timm models: half of torch's own count, by hand, and the paper's factor density * d."""

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import capaboost_vision  # noqa: F401
from capaboost.report.flops import count_flops
from capaboost_core import merge

MODELS = [
    "vit_tiny_patch16_224",
    "vit_base_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "swinv2_tiny_window8_256",
]


def on_meta(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        return model, torch.ones(1, *model.pretrained_cfg["input_size"])


@pytest.mark.parametrize("name", MODELS)
def test_forward_of_the_base_is_half_of_what_torch_counts(name):
    model, x = on_meta(name)
    counts = count_flops(model, x)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as of_torch:
        model(x)
    assert 2 * counts.executed == of_torch.get_total_flops()
    assert counts.effective_by_operator == counts.executed_by_operator
    assert counts.negligible["aten::layer_norm"] > 0
    assert counts.unsupported == {}


@pytest.mark.parametrize(("name", "width"), [("vit_tiny_patch16_224", 192), ("vit_base_patch16_224", 768)])
def test_vit_by_operator(name, width):
    assert count_flops(*on_meta(name)).executed_by_operator == {
        "conv": 14 * 14 * width * 3 * 16 * 16,
        "linear": 12 * 197 * 12 * width**2 + width * 1000,
        "scaled_dot_product_attention": 12 * 2 * 197**2 * width,
    }


def test_swin_v2_by_operator():
    """Attention within windows of 64, written as two products; a small network makes its 15 * 15 position biases."""
    stages = [(2, 64 * 64, 96, 3), (2, 32 * 32, 192, 6), (6, 16 * 16, 384, 12), (2, 8 * 8, 768, 24)]
    blocks = sum(blocks * tokens * 12 * width**2 for blocks, tokens, width, _ in stages)
    biases = sum(blocks * 225 * 512 * (2 + heads) for blocks, _, _, heads in stages)
    merging = sum(tokens // 4 * 4 * width * 2 * width for _, tokens, width, _ in stages[:-1])
    assert count_flops(*on_meta("swinv2_tiny_window8_256")).executed_by_operator == {
        "conv": 64 * 64 * 96 * 3 * 4 * 4,
        "linear": blocks + biases + merging + 768 * 1000,
        "matmul": sum(blocks * 2 * tokens * 64 * width for blocks, tokens, width, _ in stages),
    }


WIDTH, DEPTH, TOKENS, R, CLASSES = 48, 2, 17, 8, 5
LINEAR = DEPTH * TOKENS * WIDTH**2  # of one square matrix


def create(capaboost=None):
    size = {"img_size": 64, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 3, "num_classes": CLASSES}
    return timm.create_model("vit_tiny_patch16_224", capaboost=capaboost, **size).eval()


IMAGE = torch.ones(1, 3, 64, 64)
ATTENTION = DEPTH * 2 * TOKENS**2 * WIDTH
PAIRS = {"lora": 2, "padapter": 1, "hadapter": 2, "prefix": 1}  # pairs of tied weights in a block


@pytest.mark.parametrize("method", PAIRS)
def test_what_a_method_adds_by_hand(method):
    counts = count_flops(create({"method": method, "r": R}), IMAGE)
    plain = PAIRS[method] * DEPTH * TOKENS * 2 * R * WIDTH
    assert counts.executed_by_operator["tied"] == 2 * plain
    assert counts.effective_by_operator["tied"] == plain
    assert counts.executed - counts.executed_by_operator["tied"] == count_flops(create(), IMAGE).executed


@pytest.mark.parametrize("method", PAIRS)
def test_training_step_executes_what_torch_counts(method):
    model = create({"method": method, "r": R, "num_tied": 3})
    counts = count_flops(model, IMAGE, backward=True)
    in_place = {torch.ops.aten.addmm_: lambda shape, a, b, *_, **settings: 2 * a[0] * a[1] * b[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as of_torch:
        model(IMAGE).sum().backward()
    assert 2 * counts.executed == of_torch.get_total_flops()
    assert counts.unsupported == {}


def test_backward_of_lora_by_hand():
    """Below the first qkv nothing flows: neither through its frozen weight nor into the patch embedding."""
    counts = count_flops(create({"method": "lora", "r": R}), IMAGE, backward=True).executed_by_operator
    below = LINEAR // DEPTH * 3  # the first block's qkv
    assert counts["backward"] == 12 * LINEAR - below + 2 * ATTENTION + 2 * WIDTH * CLASSES
    first_input = 2 * TOKENS * 2 * R * WIDTH  # of A, d = 2, on q and v
    assert counts["tied_backward"] == 2 * counts["tied"] - first_input


def test_cost_of_copies_is_density_times_d():
    def added(**settings):
        return count_flops(create({"method": "lora", "r": R, **settings}), IMAGE).effective_by_operator["tied"]

    plain = added(num_tied=1, density=1.0)
    for num_tied, density in ((2, 0.5), (4, 0.5), (4, 0.25), (2, 1.0)):
        assert added(num_tied=num_tied, density=density) == num_tied * density * plain


def test_merged_model_costs_what_its_base_does():
    assert count_flops(merge(create("capaboost-lora")), IMAGE).executed == count_flops(create(), IMAGE).executed


def test_adapted_model_on_meta_and_on_cpu_cost_the_same():
    with torch.device("meta"):
        on_meta = count_flops(create("capaboost-lora"), torch.ones(IMAGE.shape), backward=True)
    assert on_meta == count_flops(create("capaboost-lora"), IMAGE, backward=True)
