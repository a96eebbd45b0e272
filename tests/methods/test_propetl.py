"""ProPETL's prototypes, which the layers of a role share, and the masks that each layer learns."""

import copy

import pytest
import torch
import torch.nn.functional as F

from capaboost_core import UserError, load_adapter, save_adapter, trainable_parameters
from capaboost_core.injection import adapted_layers
from capaboost_core.methods import resolve_config
from capaboost_core.sharing.learned import LearnedMaskWeight
from tests.compatibility.models import base, drawn
from tests.methods.cases import WIDTH, R, adapted, put_in, trained

PRESETS = pytest.mark.parametrize("preset", ["propetl-lora", "propetl-padapter", "propetl-prefix"])


def learned(shape, density=0.5, num_tied=1, parts=()):
    weight = LearnedMaskWeight(drawn("w", shape, 1.0).double(), torch.nn.init.zeros_, density, num_tied, 1.0, parts)
    with torch.no_grad():
        weight.scores.copy_(drawn("scores", tuple(weight.scores.shape), 1.0))
    return weight


def kept(scores, count):
    """The mask of a matrix by sorting |scores|, entry by entry."""
    order = sorted(range(scores.numel()), key=lambda i: -abs(float(scores.flatten()[i])))
    mask = torch.zeros(scores.numel(), dtype=scores.dtype)
    mask[order[:count]] = 1
    return mask.view(scores.shape)


@pytest.mark.parametrize(
    ("shape", "num_tied", "parts"), [((3, 8), 1, ()), ((2, 3, 8), 2, ()), ((3, 8), 2, (6, 2)), ((5, 4), 1, (4,))]
)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_each_view_is_the_prototype_at_its_largest_scores(shape, num_tied, parts, density):
    if density == 0.1 and parts == (6, 2):
        parts = (5, 3)
    weight = learned(shape, density, num_tied, parts)
    assert weight.scores.shape == (*shape[:-2], num_tied, *shape[-2:])
    total = 0
    for place in torch.cartesian_prod(*map(torch.arange, weight.scores.shape[:-2])).view(-1, len(shape) - 1):
        scores, prototype = weight.scores[tuple(place)], weight.prototype[tuple(place[:-1])]
        blocks = scores.split(parts or (shape[-1],), -1)
        mask = torch.cat([kept(block, round(density * block.numel())) for block in blocks], -1)
        assert torch.equal(weight.copies()[tuple(place)], prototype * mask)
        total += int(mask.sum())
    assert weight.kept == total
    assert weight.executed == weight.scores.numel()


def test_gradients_go_straight_through_to_the_scores():
    weight = learned((2, 3, 8), num_tied=2)
    gradient = drawn("gradient", tuple(weight.copies().shape), 1.0).double()
    weight.copies().backward(gradient)
    prototype = weight.prototype.detach().unsqueeze(-3)
    torch.testing.assert_close(weight.scores.grad, gradient * prototype * weight.scores.sign())
    torch.testing.assert_close(weight.prototype.grad, (gradient * weight.masks()).sum(-3))


def test_training_moves_a_mask():
    torch.manual_seed(0)
    weight, wanted = learned((4, 4)), drawn("wanted", (1, 4, 4), 1.0) > 0
    weight.prototype.requires_grad_(False).fill_(1.0)
    before = weight.masks()
    for _ in range(200):
        (weight.copies() - wanted.double()).square().sum().backward()
        weight.scores.data -= 0.05 * weight.scores.grad
        weight.scores.grad = None
    after = weight.masks()
    assert (after - wanted.double()).abs().sum() < (before - wanted.double()).abs().sum()


@pytest.mark.parametrize("way", ["injected", "copied", "loaded", "meta"])
@PRESETS
def test_layers_share_prototypes_and_learn_masks(preset, way, tmp_path):
    model = trained(preset, "bert")
    if way == "copied":
        model = copy.deepcopy(model)
    elif way == "loaded":
        model = load_adapter(base("bert"), save_adapter(model, tmp_path))
    elif way == "meta":
        model = put_in(base("bert").to("meta"), model.capaboost.config).to_empty(device="cpu")
    weights = [[m for m in layer.modules() if isinstance(m, LearnedMaskWeight)] for layer in adapted_layers(model)]
    half = len(weights) // 2  # those of the first block
    for first, second in zip(weights[:half], weights[half:], strict=True):
        for one, other in zip(first, second, strict=True):
            assert one.prototype is other.prototype
            assert not torch.equal(one.masks(), other.masks())
    flat = [weight for layer in weights for weight in layer]
    assert len({id(weight.prototype) for weight in flat}) == len(flat) // 2  # q and v, A and B have their own
    assert len({id(weight.scores) for weight in flat}) == len(flat)


def test_an_adapters_biases_belong_to_the_prototype():
    first, second = (layer.adapter for layer in adapted_layers(adapted("propetl-padapter", "vit")))
    assert first.down_bias is second.down_bias
    assert first.up_bias is second.up_bias


def test_lora_adds_the_masked_product():
    model = trained("propetl-lora", "bert", alpha=6.0)
    layer, x = adapted_layers(model)[2], drawn("x", (3, WIDTH), 1.0)
    masks = [weight.masks() for weight in (layer.lora_A, layer.lora_B)]
    first = adapted_layers(model)[0]
    a, b = first.lora_A.prototype[0] * masks[0][0, 0], first.lora_B.prototype * masks[1][0]
    expected = F.linear(x, layer.weight, layer.bias) + 6.0 / R * (x @ a.T @ b)
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_slices_of_a_fused_layer_have_masks_and_prototypes_as_apart():
    fused, apart = (adapted_layers(adapted("propetl-lora", kind)) for kind in ("vit", "bert"))
    assert fused[0].lora_A.kept == sum(layer.lora_A.kept for layer in apart[:2])
    counts = fused[0].lora_B.masks().split(WIDTH, -1)
    assert [int(part.sum()) for part in counts] == [layer.lora_B.kept for layer in apart[:2]]


@PRESETS
def test_a_row_costs_the_prototypes_products_of_which_masks_keep_a_share(preset):
    for layer in adapted_layers(adapted(preset, "vit")):
        products, weights = layer.macs(True), [m for m in layer.modules() if isinstance(m, LearnedMaskWeight)]
        assert [product.executed for product in products] == [weight.prototype.numel() for weight in weights]
        assert [product.kept for product in products] == [int(weight.masks().sum()) for weight in weights]


@PRESETS
def test_scores_have_a_rate_of_their_own(preset):
    model = adapted(preset, "bert")
    config = model.capaboost.config
    factors = {name: config.lr_factor(name) for name in trainable_parameters(model)}
    assert {factor for name, factor in factors.items() if "scores" in name} == {config.mask_lr_factor}
    assert {factor for name, factor in factors.items() if "scores" not in name} == {1.0}


def test_what_draws_masks_is_refused_and_so_is_an_empty_mask():
    with pytest.raises(UserError, match="drop it"):
        resolve_config("propetl-lora").replace(mask="same")
    with pytest.raises(UserError, match="seed"):
        resolve_config("propetl-lora").replace(seed=3)
    with pytest.raises(UserError, match=r"density 0\.001 keeps no entry"):
        put_in(base("bert"), resolve_config("propetl-prefix").replace(r=R, density=0.001))
