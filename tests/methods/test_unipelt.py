"""UniPELT's gates: what they are, that each example has its own, and what they multiply."""

import pytest
import timm
import torch
import torch.nn.functional as F

from capaboost_core import UserError, unload
from capaboost_core.injection import adapted_layers
from capaboost_core.methods.unipelt import Gate, GatedBottleneck, GatedLinear
from tests.compatibility.models import base, drawn
from tests.methods.cases import WIDTH, out, put_in, settings, trained

BATCH, TOKENS = 2, 5
X = drawn("x", (BATCH, TOKENS, WIDTH), 1.0)


def gates(gate, x):
    """mean_t sigmoid(g . x_t + g0) by example and gate."""
    logits = [
        [[float(g @ t + g0) for t in example] for example in x] for g, g0 in zip(gate.weight, gate.bias, strict=True)
    ]
    return torch.tensor(logits).sigmoid().mean(-1).T


def layers(model, cls):
    return [module for module in model.modules() if isinstance(module, cls)]


def test_a_gate_is_a_mean_over_the_tokens_of_each_example():
    gate = Gate(3, WIDTH, torch.zeros(1))
    torch.testing.assert_close(gate(X), torch.full((BATCH, 1, 3), 0.5), atol=0.05, rtol=0)
    torch.nn.init.normal_(gate.weight)
    torch.testing.assert_close(gate(X)[:, 0], gates(gate, X))
    assert not torch.equal(gate(X)[0], gate(X)[1])
    assert torch.equal(gate(X.view(BATCH, TOKENS, 1, WIDTH)), gate(X).unsqueeze(1))
    torch.testing.assert_close(gate(X[:, 0]), gates(gate, X[:, :1]))


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_loras_gates_take_the_place_of_alpha_over_r(kind):
    layer = layers(trained("unipelt", kind), GatedLinear)[0]
    expected = F.linear(X, layer.weight, layer.bias)
    for index, (start, stop) in enumerate(layer.slices):
        a = layer.lora_A.copies()[index, 0]
        b = layer.lora_B.copies()[0, :, index * WIDTH : (index + 1) * WIDTH]
        increment = gates(layer.gate, X)[:, index].view(-1, 1, 1) * (X @ a.T @ b)
        expected = expected.clone()
        expected[..., start:stop] += increment
    torch.testing.assert_close(layer(X), expected, atol=1e-5, rtol=1e-5)


def test_the_adapters_gate_multiplies_the_bottleneck():
    adapter = layers(trained("unipelt", "bert"), GatedBottleneck)[0]
    down, up = adapter.down.copies()[0], adapter.up.copies()[0]
    plain = torch.relu(X @ down.T + adapter.down_bias) @ up + adapter.up_bias
    expected = gates(adapter.gate, X).view(-1, 1, 1) * plain
    torch.testing.assert_close(adapter(X), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_the_prefixs_gate_multiplies_its_keys_and_values(kind):
    model = trained("unipelt-ap", kind)
    attention = next(layer for layer in adapted_layers(model) if hasattr(layer, "prefix"))
    heads, prefix = 2, attention.prefix
    if kind == "vit":
        q, k, v = F.linear(X, attention.qkv.weight, attention.qkv.bias).chunk(3, -1)
        q, k = attention.q_norm(q), attention.k_norm(k)
    else:
        q, k, v = (getattr(attention, name)(X) for name in ("query", "key", "value"))
    gate = gates(prefix.gate, X).view(-1, 1, 1)
    keys, values = (
        torch.cat([gate * weight.copies()[0], own], 1).unflatten(-1, (heads, -1)).transpose(1, 2)
        for weight, own in ((prefix.keys, k), (prefix.values, v))
    )
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    probabilities = (q @ keys.mT / (WIDTH // heads) ** 0.5).softmax(-1)
    expected = (probabilities @ values).transpose(1, 2).flatten(2)
    found = attention(X)
    if kind == "vit":
        expected = attention.proj(expected)
    torch.testing.assert_close(found if kind == "vit" else found[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_layers_within_layers_are_put_back(kind):
    model = unload(trained("unipelt", kind), merge=False)
    assert torch.equal(out(model), out(base(kind)))
    assert model.state_dict().keys() == base(kind).state_dict().keys()


def test_a_model_without_a_form_for_the_prefix_is_refused():
    small = dict(img_size=32, window_size=4, embed_dim=12, depths=(1, 1, 1, 1))
    model = timm.create_model("swin_tiny_patch4_window7_224", **small)
    with pytest.raises(UserError, match="method prefix has no form") as refusal:
        put_in(model, settings("unipelt"))
    assert "\n" not in str(refusal.value)
