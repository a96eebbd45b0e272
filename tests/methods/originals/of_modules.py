"""The outputs of the authors' modules with the values of ours."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.originals.cases import WIDTH, R, X


def set_linear(linear: nn.Module, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def of_compacter(theirs: ModuleType, ours: nn.Module) -> Tensor:
    kind = dict(c_init="normal", w_init="glorot-uniform", shared_phm_rule=True, factorized_phm=True, phm_rank=2)
    down, up = (theirs.PHMLinear(*sizes, 4, **kind) for sizes in ((WIDTH, R), (R, WIDTH)))
    for layer, name in ((down, "down"), (up, "up")):
        layer.double().set_phm_rule(phm_rule=ours.slow)
        layer.W_left.copy_(ours.factor(f"{name}_left").mT)
        layer.W_right.copy_(ours.factor(f"{name}_right"))
        layer.b.copy_(getattr(ours, f"{name}_bias"))
    return up(F.silu(down(X)))


def of_experts(theirs: ModuleType, ours: nn.Module, places: dict[str, str], up: Tensor, **sizes: int) -> Tensor:
    """An `ExpertSoup` with our weights, by the authors' name of each mixture."""
    soup = theirs.ExpertSoup(WIDTH, R, "gelu", **sizes).double().eval()
    for place, name in places.items():
        experts = getattr(soup, place).deepspeed_experts
        weights = getattr(ours, name).packed.view(len(experts), -1, WIDTH)
        biases = getattr(ours, f"{name}_bias").view(len(experts), -1)
        for expert, weight, bias in zip(experts, weights, biases, strict=True):
            set_linear(expert, weight, bias)
        getattr(soup, place).expert_score_weight.zero_()
    set_linear(soup.MoA_B.deepspeed_experts[0], up.T, ours.up_bias)
    return soup(X, torch.zeros_like(X))


def of_unipelt(theirs: ModuleType, ours: nn.Module) -> Tensor:
    layer = theirs.LoRA_Linear(WIDTH, WIDTH, r=R, lora_alpha=16, add_gate=True, merge_weights=False).double()
    set_linear(layer, ours.weight, ours.bias)
    layer.lora_A.copy_(ours.lora_A.packed.view(R, WIDTH))
    layer.lora_B.copy_(ours.lora_B.packed.view(R, WIDTH).T)
    set_linear(layer.lora_gate, ours.gate.weight, ours.gate.bias)
    return layer(X)


def of_adaptformer(theirs: ModuleType, ours: nn.Module) -> Tensor:
    kind = dict(init_option="lora", adapter_scalar="0.1", adapter_layernorm_option="none")
    adapter = theirs.Adapter(d_model=WIDTH, bottleneck=R, **kind).double().eval()
    set_linear(adapter.down_proj, ours.down.packed.view(R, WIDTH), ours.down_bias)
    set_linear(adapter.up_proj, ours.up.packed.view(R, WIDTH).T, ours.up_bias)
    return adapter(X, add_residual=False)


def of_propetl(theirs: ModuleType, ours: nn.Module) -> Tensor:
    return ours.prototype * theirs.GetSubnet.apply(ours.scores[0].abs(), 0.25)


def of_adamix(theirs: ModuleType, ours: nn.Module) -> Tensor:
    sizes = dict(num_expert=3, inference_level=3, sharing_up=1)
    return of_experts(theirs, ours, {"MoA_A": "down"}, ours.up.packed.view(R, WIDTH), **sizes)


def of_adakron(theirs: ModuleType, ours: nn.Module) -> Tensor:
    return of_experts(theirs, ours, {"MoA_A1": "right", "MoA_A2": "left"}, ours.up.packed.view(R, WIDTH))


def of_partial_madakron(theirs: ModuleType, ours: nn.Module) -> Tensor:
    """Their product has the factors in the other order: the same hidden values in another one."""
    up = ours.up.packed.view(4, R // 4, WIDTH).transpose(0, 1).reshape(R, WIDTH)
    return of_experts(theirs, ours, {"MoA_A": "left", "MoA_A1": "right"}, up, num_expert=3)


MODULES = {
    "compacter": of_compacter,
    "adamix": of_adamix,
    "adakron": of_adakron,
    "madakron-partial": of_partial_madakron,
    "propetl": of_propetl,
    "unipelt": of_unipelt,
    "adaptformer": of_adaptformer,
}
