"""Models that compute past their layers: the adapter counts in evaluation too, or is refused beforehand."""

import pytest
import torch
from torch import nn

from capaboost_core import CapaBoostConfig, Plan, Target, UserError, disable, inject, merged, trainable_parameters
from capaboost_core.methods.lora_layer import LoRALinear

WIDTH = 16
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def layer(**settings):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True, **settings)


ENCODERS = {
    "layer": lambda: layer(),
    "gelu, norm first": lambda: layer(activation="gelu", norm_first=True),
    "encoder": lambda: nn.TransformerEncoder(layer(), 2),
    "layers in a model": lambda: nn.Sequential(layer(), layer()),
}


@pytest.mark.hard_case(17)
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_adapted_transformer_encoder_counts_in_evaluation(make, padding):
    model = make().eval()
    if padding and isinstance(model, nn.Sequential):
        pytest.skip("takes no padding")
    arguments = {"src_key_padding_mask": PADDING} if padding else {}
    seen = ~PADDING if padding else torch.ones_like(PADDING)
    with torch.inference_mode():
        base = model(X, **arguments)[seen]
    inject(model, CapaBoostConfig(r=4, targets=["linear1", "linear2"]))
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter)
    expected = model(X, **arguments)[seen].detach()  # with gradients there is no fast path
    with torch.inference_mode():
        torch.testing.assert_close(model(X, **arguments)[seen], expected, rtol=1e-5, atol=1e-5)
        with disable(model):
            torch.testing.assert_close(model(X, **arguments)[seen], base, rtol=1e-5, atol=1e-5)
        with merged(model):
            torch.testing.assert_close(model(X, **arguments)[seen], expected, rtol=1e-4, atol=1e-4)
    assert (expected - base).abs().max() > 1e-2


@pytest.mark.hard_case(17)
def test_layers_without_targets_keep_their_fast_path():
    model = nn.ModuleList([layer(), layer()])
    inject(model, CapaBoostConfig(), Plan((Target("1.linear1"),)))
    assert [one.activation_relu_or_gelu for one in model] == [1, 0]


class Int8(torch.Tensor):
    """A tensor subclass, as quantized weights are."""


def with_weight(weight):
    linear = nn.Linear(8, 8)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return nn.Sequential(nn.Linear(8, 8), linear)


def attention():
    """Some libraries put an ordinary layer where nn.MultiheadAttention reads the weight itself."""
    module = nn.Sequential(nn.MultiheadAttention(WIDTH, 2))
    module[0].out_proj = nn.Linear(WIDTH, WIDTH)
    return module


class Conv1D(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))


SUBCLASS = torch.randn(8, 8).as_subclass(Int8)
WHOLE_NUMBERS = torch.ones(8, 8, dtype=torch.int8)
REFUSED = [
    (18, lambda: with_weight(SUBCLASS), ["0", "1"], "target 1 has a weight of Int8"),
    (18, lambda: with_weight(WHOLE_NUMBERS), ["0", "1"], "target 1 has a weight of torch.int8"),
    (17, attention, ["out_proj"], "nn.MultiheadAttention reads its weight without calling it"),
    (35, lambda: nn.Sequential(Conv1D()), ["0"], "0 is a tests.core.test_bypass.Conv1D, and only nn.Linear"),
]


@pytest.mark.parametrize(
    ("make", "targets", "message"),
    [pytest.param(*case, marks=pytest.mark.hard_case(row), id=case[-1]) for row, *case in REFUSED],
)
def test_what_no_adapter_would_reach_is_refused_before_anything_changes(make, targets, message):
    model = make()
    modules, flags = list(model.modules()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(UserError, match=message) as caught:
        inject(model, CapaBoostConfig(r=4, targets=targets))
    assert "\n" not in str(caught.value)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
