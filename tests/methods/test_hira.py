"""HiRA against stock peft's, and its tied form against the sum written out."""

import pytest
import torch
from torch import nn

from capaboost_core import Plan, Target, inject, merge
from capaboost_core.injection import adapted_layers
from capaboost_core.sharing.masks import mask_bits

IN, OUT, R = 12, 10, 2


def adapted(**settings) -> nn.Module:
    """A linear layer with HiRA on it, and drawn factors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, OUT)).double()
    slices = settings.pop("slices", ())
    inject(model, {"method": "hira", "r": R, **settings}, Plan((Target("0", slices),)))
    with torch.no_grad():
        for factor in (model[0].lora_A, model[0].lora_B):
            factor.packed.normal_()
    return model


def test_outputs_and_merged_weight_are_those_of_peft():
    peft = pytest.importorskip("peft")
    model, x = adapted(num_tied=1, density=1.0), torch.randn(3, IN, dtype=torch.float64)
    base = nn.Sequential(nn.Linear(IN, OUT)).double()
    base.load_state_dict({name: value for name, value in model.state_dict().items() if "lora" not in name})
    theirs = peft.get_peft_model(base, peft.HiraConfig(r=R, target_modules=["0"]))
    layer = theirs.base_model.model[0]
    a, b = model[0].factors(training=False)
    layer.hira_A["default"].data, layer.hira_B["default"].data = a, b.T
    torch.testing.assert_close(model(x), theirs(x), rtol=0, atol=1e-14)
    merge(model.eval())
    torch.testing.assert_close(model(x), theirs.merge_and_unload()(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("slices", [(), ((0, 4), (7, 10)), ((6, 10), (0, 3))])
def test_tied_copies_are_multiplied_with_their_masks(slices):
    model, x = (
        adapted(num_tied=2, density=0.5, alpha=3.0, scaling="alpha-r", slices=slices),
        torch.randn(5, IN).double(),
    )
    layer, config = model[0], model.capaboost.config
    expected, begin = x @ layer.weight.T + layer.bias, 0
    for index, (start, stop) in enumerate(slices or ((0, OUT),)):
        a = layer.lora_A.copies()[index].sum(0) / (layer.lora_A.copies()[index] != 0).sum(0).clamp(
            min=1
        )  # dense again
        b = layer.lora_B.copies()[..., begin : begin + stop - start]
        b = (b.sum(0) / (b != 0).sum(0).clamp(min=1)).T
        masks_a = mask_bits(config, "0", f"A.{index}", (R, IN))
        masks_b = mask_bits(config, "0", f"B.{index}", (stop - start, R))
        for copy in range(2):
            mask_a, mask_b = (torch.from_numpy((bits >> copy) & 1).double() for bits in (masks_a, masks_b))
            delta = 1.5 * (b * mask_b) @ (a * mask_a)
            expected[:, start:stop] += x @ (layer.weight[start:stop] * delta).T
        begin += stop - start
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-13)


def test_the_rank_is_not_bound_by_that_of_the_factors():
    (delta,) = adapted_layers(adapted(num_tied=1, density=1.0))[0].delta_weights()
    assert torch.linalg.matrix_rank(delta) == OUT > R
