"""A model of three linear layers, to inject into, and an input for it."""

import torch
from torch import nn

from capaboost_core import CapaBoostConfig, Plan, Target, inject, trainable_parameters


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()))


PLAN = Plan((Target("first", ((0, 16),)), Target("second")), head=("head",))


def config_of(method, **settings):
    """With r = 4 where the method has one."""
    return CapaBoostConfig(method, **({} if method in ("linear", "full") else {"r": 4}), **settings)


def fresh_base():
    torch.manual_seed(0)
    return Net()


def adapted(method="lora", **settings):
    torch.manual_seed(0)
    return inject(Net(), config_of(method, **settings), PLAN)


def randomise(model):
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter)
    return model


def garbage(model, device="cpu"):
    """`to_empty` in the worst case: memory that something else has left."""

    def fill(tensor):
        tensor = torch.empty_like(tensor, device=device)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

    return model._apply(fill)


X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
