"""What autograd newly holds for the backward pass of one adapted layer: the hidden, the factors, and no more."""

import pytest
import torch
from torch import nn

from capaboost_core import CapaBoostConfig, Target
from capaboost_core.methods.lora_layer import LoRALinear

IN, OUT, RANK, ROWS = 96, 288, 4, 10
WHOLE, Q_AND_V = ((0, OUT),), ((0, 96), (192, OUT))


def lora_linear(slices, trained_base=False, **settings):
    base = nn.Linear(IN, OUT).requires_grad_(trained_base)
    return LoRALinear(base, CapaBoostConfig(r=RANK, alpha=6, **settings), Target("p", slices))


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def newly_held(layer, x):
    """Bytes of each storage that is saved and is neither x nor the layer's own."""
    saved = []  # holding them keeps the allocator from giving out an address twice

    def keep(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(x)
    assert out.requires_grad
    assert address(layer.weight) in map(address, saved)  # the hooks saw this layer
    known = {address(tensor) for tensor in (x, *layer.parameters(), *layer.buffers())}
    return {address(t): t.untyped_storage().nbytes() for t in saved if address(t) not in known}


def entries(layer):
    """Entries of the hidden (d*r, rows) and of the factors A (d*r, in) and B (out, d*r), over all slices."""
    rank = layer.lora_A.num_tied * RANK
    return rank * (len(layer.slices) * (ROWS + IN) + sum(layer.widths))


@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize("trained_base", [True, False])
@pytest.mark.parametrize("slices", [WHOLE, Q_AND_V], ids=["whole", "q-and-v"])
@pytest.mark.parametrize(("num_tied", "density"), [(1, 1.0), (1, 0.5), (2, 0.5), (2, 1.0), (4, 0.5), (8, 0.5)])
def test_no_copy_of_the_weight_of_x_or_of_a_mask(num_tied, density, slices, trained_base, needs_gradient):
    layer = lora_linear(slices, trained_base, num_tied=num_tied, density=density)
    x = torch.randn(2, ROWS // 2, IN, requires_grad=needs_gradient)
    assert sum(newly_held(layer, x).values()) <= 4 * entries(layer)


def test_autocast_adds_the_lowered_x_and_no_lowered_weight():
    layer = lora_linear(Q_AND_V)
    with torch.autocast("cpu", torch.bfloat16):
        held = newly_held(layer, torch.randn(ROWS, IN, requires_grad=True))
    assert sum(held.values()) <= 2 * (entries(layer) + ROWS * IN)


def test_dropout_adds_its_mask_and_the_dropped_x_in_place_of_x():
    layer, x = lora_linear(Q_AND_V, dropout=0.1), torch.randn(ROWS, IN).requires_grad_()
    lowered = (2 * x).requires_grad_()  # not a leaf: nothing but autograd would hold it
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(lowered)
    assert address(lowered) not in map(address, saved)
    assert sum(newly_held(layer, x).values()) <= 4 * (entries(layer) + 2 * ROWS * IN)
