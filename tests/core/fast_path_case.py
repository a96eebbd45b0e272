"""Layers and a model whose increments are not zero, in double precision, and how near two results are."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from capaboost_core import CapaBoostConfig, Plan, Target, inject, trainable_parameters
from capaboost_core.methods.lora_layer import LoRALinear

IN, OUT, RANK, ALPHA, DROPOUT = 12, 24, 4, 6, 0.3
WHOLE, Q_AND_V = ((0, OUT),), ((0, 8), (16, 24))
DOUBLE = torch.float64


def lora_linear(slices=Q_AND_V, bias=True, dtype=DOUBLE, trained_base=False, **settings):
    """A layer whose increments are not zero."""
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT, bias, dtype=dtype).requires_grad_(trained_base)
    layer = LoRALinear(base, CapaBoostConfig(r=RANK, alpha=ALPHA, scaling="alpha-r", **settings), Target("p", slices))
    for parameter in layer.own_parameters().values():
        nn.init.normal_(parameter)
    return layer


def assert_near(actual, expected, tolerance):
    """Within the tolerance relative to the largest entry."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * max(scale, 1e-30))


class Net(nn.Module):
    """Two layers to adapt, one of them a fused qkv, as blocks that can be checkpointed."""

    def __init__(self, mode=None):
        super().__init__()
        self.qkv, self.mlp, self.head, self.mode = nn.Linear(IN, OUT), nn.Linear(OUT, IN), nn.Linear(IN, 3), mode

    def block(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.mlp(torch.cat([q * k, k + v, v.relu()], -1))

    def forward(self, x):
        x = self.block(x) if self.mode is None else checkpoint(self.block, x, use_reentrant=self.mode)
        return self.head(x.relu())


def adapted(mode=None, dtype=DOUBLE, **settings):
    torch.manual_seed(0)
    plan = Plan((Target("qkv", Q_AND_V), Target("mlp")), head=("head",))
    model = inject(Net(mode).to(dtype), CapaBoostConfig(r=RANK, **settings), plan)
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter, std=0.3)
    return model


def batch(dtype=DOUBLE):
    return torch.randn(8, 5, IN, dtype=dtype, generator=torch.Generator().manual_seed(1))
