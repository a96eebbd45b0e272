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


X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
