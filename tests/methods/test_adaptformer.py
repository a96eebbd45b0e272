"""AdaptFormer's bottleneck reads what the feed-forward part reads, and adds to what that gives."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from capaboost_core.injection import adapted_layers
from capaboost_core.sharing.masks import mask_bits
from tests.compatibility.models import base, logits
from tests.methods.cases import WIDTH, R, adapted, settings, trained
from tests.methods.vit_by_hand import IMAGES, vit_by_hand

PRESETS = ("adaptformer", "capaboost-adaptformer")


def dense(tied, bits):
    """The d masked copies of a weight, written out from its packed entries."""
    whole = np.zeros(bits.shape)
    whole[bits != 0] = tied.packed.detach().double().flatten().numpy()
    return [torch.from_numpy(whole * (bits >> copy & 1)) for copy in range(tied.num_tied)]


def bottleneck(layer, config, x):
    """scale * (sum_i relu(x (D * md_i)^T + c)(U * mu_i)^T + e), one copy after the other."""
    adapter = layer.adapter
    down = dense(adapter.down, mask_bits(config, layer.path, "down", (R, WIDTH)))
    up = dense(adapter.up, mask_bits(config, layer.path, "up", (WIDTH, R)).T)
    c, e = adapter.down_bias.detach(), adapter.up_bias.detach()
    return config.scale * (sum(torch.relu(x @ d.T + c) @ u for d, u in zip(down, up, strict=True)) + e)


@pytest.mark.parametrize("preset", PRESETS)
def test_written_out(preset):
    config, model = settings(preset), trained(preset, "vit").double()
    layers, read = {layer.path: layer for layer in adapted_layers(model)}, {}

    def act(path, x, compute):
        part, _, name = path.rpartition(".")
        if name == "fc1":
            read[part] = x
        return compute(x) + (bottleneck(layers[part], config, read[part]) if name == "fc2" else 0)

    with torch.no_grad():
        ours = model(IMAGES)
    torch.testing.assert_close(ours, vit_by_hand(act))
    assert not torch.allclose(ours, vit_by_hand())


@pytest.mark.parametrize("preset", PRESETS)
def test_in_bert_it_joins_the_residual_sum(preset):
    config, model, plain = settings(preset), trained(preset, "bert").double(), base("bert").double()
    for layer in adapted_layers(model):
        part = plain.get_submodule(layer.path)
        h, x = torch.randn(2, 5, 24).double(), torch.randn(2, 5, WIDTH).double()
        with torch.no_grad():
            whole = part.dense(h) + x + bottleneck(layer, config, x)
            torch.testing.assert_close(layer(h, x), part.LayerNorm(whole))
            assert not torch.allclose(logits(model), logits(plain))


def test_hidden_values_are_dropped_and_the_input_is_not():
    adapter = adapted("adaptformer", "vit", dropout=0.5).blocks[0].mlp.adapter.double().train()
    x = torch.randn(3, WIDTH).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
        hidden = torch.relu(x @ adapter.down.copies()[0].T + adapter.down_bias)
        torch.manual_seed(0)
        found = adapter(x)
        torch.manual_seed(0)
        expected = 0.1 * (F.dropout(hidden, 0.5) @ adapter.up.copies()[0] + adapter.up_bias)
    torch.testing.assert_close(found, expected)
