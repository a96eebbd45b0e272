"""Additions of methods with drawn values in float64, whose outputs the authors' code has given for the same values."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from capaboost_core.injection import adapted_layers, own_parameters
from capaboost_core.methods import resolve_config
from capaboost_core.methods.adaptformer import ParallelBottleneck
from capaboost_core.methods.noah import Subnet, cut
from capaboost_core.methods.unipelt import GatedLinear
from capaboost_core.plan import Target
from capaboost_core.sharing.learned import LearnedMaskWeight
from capaboost_vision import inject
from tests.compatibility.models import base, drawn

EXPECTED = Path(__file__).with_name("expected.json")
WIDTH, R = 12, 8
X = drawn("x", (2, 3, WIDTH), 1.0).double()
IMAGES = drawn("images", (2, 3, 32, 32), 1.0).double()
ADAPTERS = {  # settings beside r
    "compacter": {"activation": "swish", "phm_rank": 2},  # the authors' GELU is its approximation by tanh
    "adamix": {"num_experts": 3},
    "adakron": {},
    "madakron-partial": {"num_experts": 3},
}
VITS = ("vpt-shallow", "vpt-deep", "ssf", "fact-tt", "fact-tk", "repadapter", "noah-supernet")
SUBNET = Subnet(lora=(3, 8), adapter=(8, 0), prompt=(5, 0))  # of NOAH's supernet
CASES = (*ADAPTERS, "propetl", "unipelt", "adaptformer", *VITS)


def addition(name: str) -> nn.Module:
    """The module of a case, or the tiny ViT that the method has adapted, in evaluation."""
    module = adapted_vit(name) if name in VITS else added_module(name)
    added = own_parameters(adapted_layers(module)) if name in VITS else dict(module.named_parameters())
    with torch.no_grad():
        for own, parameter in added.items():
            parameter.copy_(drawn(f"{name}.{own}", tuple(parameter.shape), 1.0))
            if name == "fact-tk" and ".mlp." in own:  # the authors' code interleaves the matrices of f1, and of f2
                parameter.zero_()
    return module.eval()


def adapted_vit(name: str) -> nn.Module:
    config = resolve_config(name)
    if name == "noah-supernet":
        model = inject(base("vit").double(), config.replace(dims=(R,)))
        cut(model, SUBNET)
        return model
    return inject(base("vit").double(), config.replace(r=R) if config.budget == "r" else config)


def added_module(name: str) -> nn.Module:
    like = torch.zeros(1, dtype=torch.float64)
    if name in ADAPTERS:
        return resolve_config(name).replace(r=R, **ADAPTERS[name]).make_adapter("a", WIDTH, like)
    if name == "adaptformer":
        return ParallelBottleneck(resolve_config(name).replace(r=R), "a", WIDTH, like)
    if name == "propetl":
        return LearnedMaskWeight(torch.zeros(R, WIDTH, dtype=torch.float64), nn.init.zeros_, 0.25, 1, 1.0)
    return GatedLinear(nn.Linear(WIDTH, WIDTH).double(), resolve_config("lora").replace(r=R), Target("a"))


@torch.no_grad()
def output(name: str, module: nn.Module) -> Tensor:
    """What a case computes: of ProPETL the masked weight, else the output for X or the images."""
    if name == "propetl":
        return module.copies()[0]
    return module(IMAGES if name in VITS else X)
