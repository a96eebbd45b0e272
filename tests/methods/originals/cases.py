"""Additions of methods with drawn values in float64, whose outputs the authors' code has given for the same values."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from capaboost_core.methods import resolve_config
from capaboost_core.methods.gates import GatedLinear
from capaboost_core.plan import Target
from capaboost_core.sharing.learned import LearnedMaskWeight
from tests.compatibility.models import drawn

EXPECTED = Path(__file__).with_name("expected.json")
WIDTH, R = 12, 8
X = drawn("x", (2, 3, WIDTH), 1.0).double()
ADAPTERS = {  # settings beside r
    "compacter": {"activation": "swish", "phm_rank": 2},  # the authors' GELU is its approximation by tanh
    "adamix": {"num_experts": 3},
    "adakron": {},
    "madakron-partial": {"num_experts": 3},
}
CASES = (*ADAPTERS, "propetl", "unipelt")


def addition(name: str) -> nn.Module:
    """The module of a case, in evaluation."""
    like = torch.zeros(1, dtype=torch.float64)
    if name in ADAPTERS:
        module = resolve_config(name).replace(r=R, **ADAPTERS[name]).make_adapter("a", WIDTH, like)
    elif name == "propetl":
        module = LearnedMaskWeight(torch.zeros(R, WIDTH, dtype=torch.float64), nn.init.zeros_, 0.25, 1, 1.0)
    else:
        config = resolve_config("lora").replace(r=R)
        module = GatedLinear(nn.Linear(WIDTH, WIDTH).double(), config, Target("a"))
    with torch.no_grad():
        for own, parameter in module.named_parameters():
            parameter.copy_(drawn(f"{name}.{own}", tuple(parameter.shape), 1.0))
    return module.eval()


@torch.no_grad()
def output(name: str, module: nn.Module) -> Tensor:
    """What a case computes: of ProPETL the masked weight, else the output for X."""
    return module.copies()[0] if name == "propetl" else module(X)
