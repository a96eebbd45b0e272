"""What an adapter holds: trainable parameters, optimizer state, file. The head is counted in none of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.models import ATTENTION_QV, Workload, copy_with_own
from capaboost_core import Plan, UserError, inject, merge
from capaboost_core.extras import install_line
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.reference import LoopedLinear
from capaboost_core.plan import in_prefix

MERGED = "-merged"
PEERS = (
    "base",
    "floor",
    "capaboost-d1",
    "capaboost-d2",
    "capaboost-d4",
    "capaboost-d8",
    "looped-d2",
    "looped-d8",
    "peft",
    "peft-2r",
    "peft-capaboost",
    "capaboost-d2-merged",
    "peft-merged",
)


@dataclass(frozen=True)
class Peer:
    """A model whose trainable parameters are its adapter and the head.

    Attributes:
        head: Paths of the head in the model.
        file_tensors: What its adapter file holds, the head included; None for a peer without an adapter.
    """

    model: nn.Module
    head: tuple[str, ...]
    file_tensors: Callable[[], dict[str, Tensor]] | None = None


def check_peers(names: list[str]) -> None:
    """Refuse what cannot be built, before a model is made.

    Raises:
        UserError: If a peer is unknown, or peft is wanted and not installed.
    """
    for name in names:
        if name not in PEERS:
            raise UserError(f"there is no peer {name!r}; type some of: {', '.join(PEERS)}")
    if any(name.startswith("peft") for name in names) and not find_spec("peft"):
        others = [name for name in names if not name.startswith("peft")] or ["capaboost-d2"]
        without = f"--peers {' '.join(others)}"
        raise UserError(f"peft is not installed; run {install_line('peft')}, or leave it out: {without}")


def build_peer(name: str, base: nn.Module, workload: Workload, rank: int) -> Peer:
    """One peer over the weights of `base`, which it shares unless it merges into them.

    `capaboost-d1` is the package's own plain LoRA (d = 1, density 1), the others have density 0.5.
    """
    plan = workload.plan(base, ATTENTION_QV)
    kind, _, variant = name.removesuffix(MERGED).partition("-")
    targets = tuple(target.path for target in plan.targets)
    merged = name.endswith(MERGED)
    model = copy_with_own(base, (*plan.head, *targets) if merged else (*plan.head, *_first_layers(plan)))
    if kind in ("base", "floor"):
        peer = frozen(model, plan, floor=kind == "floor")
    elif kind == "peft":
        peer = peft_peer(model, workload, plan, rank, variant)
    else:
        peer = {"capaboost": capaboost, "looped": looped}[kind](model, plan, rank, int(variant.removeprefix("d")))
    _randomise(peer)
    if merged:
        merge(peer.model) if kind == "capaboost" else cast(Any, peer.model).merge_adapter()
    return peer


def capaboost(model: nn.Module, plan: Plan, rank: int, num_tied: int) -> Peer:
    return _peer(inject(model, tied_config(rank, num_tied), plan), plan.head)


def tied_config(rank: int, num_tied: int) -> LoRA:
    return LoRA(r=rank, num_tied=num_tied, density=0.5 if num_tied > 1 else 1.0)


def looped(model: nn.Module, plan: Plan, rank: int, num_tied: int) -> Peer:
    _train_head_only(model, plan)
    config = tied_config(rank, num_tied)
    for target in plan.targets:
        layer = model.get_submodule(target.path)
        assert isinstance(layer, nn.Linear)
        slices = target.slices or ((0, layer.out_features),)
        looped_layer = LoopedLinear(layer, slices, rank, num_tied, config.density, config.scale)
        model.set_submodule(target.path, looped_layer)
    return _peer(model, plan.head)


def peft_peer(model: nn.Module, workload: Workload, plan: Plan, rank: int, variant: str) -> Peer:
    """Stock peft, with a scale of 1 and no dropout as the others have; or `capaboost-d2` through peft's door."""
    import peft

    settings: dict[str, Any] = dict(target_modules=list(workload.peft_targets), modules_to_save=list(plan.head))
    if variant == "capaboost":
        from capaboost_peft import CapaBoostConfig as PeftConfig

        slices = {target.path: list(target.slices) for target in plan.targets if target.slices}
        config = PeftConfig(r=rank, slices=slices, **settings)
    else:
        rank = 2 * rank if variant == "2r" else rank
        config = peft.LoraConfig(r=rank, lora_alpha=rank, **settings)
    wrapped = peft.get_peft_model(model, config)
    head = tuple(f"base_model.model.{path}" for path in plan.head)
    return Peer(wrapped, head, lambda: peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))


def frozen(model: nn.Module, plan: Plan, floor: bool) -> Peer:
    """The frozen model with a trained head; the floor's gradients flow as far back as an adapter's do.

    For that the biases of the first attention's targets are trained, which adds no arithmetic to the
    forward pass and one sum over tokens to the backward pass.
    """
    _train_head_only(model, plan)
    for path in _first_layers(plan) if floor else ():
        model.get_submodule(path).bias.requires_grad_(True)
    return Peer(model, plan.head)


def _peer(model: nn.Module, head: tuple[str, ...]) -> Peer:
    return Peer(model, head, lambda: {n: p.detach() for n, p in model.named_parameters() if p.requires_grad})


def _train_head_only(model: nn.Module, plan: Plan) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(in_prefix(name, prefix) for prefix in plan.head))


def _first_layers(plan: Plan) -> tuple[str, ...]:
    """The targets in the same module as the first: qkv, or query and value, of the first block."""
    parent = plan.targets[0].path.rpartition(".")[0]
    return tuple(target.path for target in plan.targets if in_prefix(target.path, parent))


@torch.no_grad()
def _randomise(peer: Peer) -> None:
    """Nonzero values for a fresh B, so that no product is trivial."""
    for parameter in adapter_parameters(peer).values():
        nn.init.normal_(parameter, std=0.02)


def adapter_parameters(peer: Peer) -> dict[str, nn.Parameter]:
    """The trained parameters, without the head's."""
    named = peer.model.named_parameters()
    return {n: p for n, p in named if p.requires_grad and not any(in_prefix(n, prefix) for prefix in peer.head)}


SIZES = ("trainable_parameters", "optimizer_bytes", "file_bytes")


def sizes_of(peer: Peer, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Counts of one peer, after its first step; none of a peer without an adapter."""
    if peer.file_tensors is None:
        return {}
    parameters = adapter_parameters(peer).values()
    states = [value for p in parameters for value in optimizer.state[p].values() if torch.is_tensor(value)]
    counts = (sum(p.numel() for p in parameters), sum(tensor.nbytes for tensor in states), _file_bytes(peer))
    return dict(zip(SIZES, counts, strict=True))


def _file_bytes(peer: Peer) -> int:
    """Size of the safetensors file of all that the peer saves but the head."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in peer.file_tensors().items()
        if not any(in_prefix(name, prefix) for prefix in peer.head)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_file(tensors, path)
        return path.stat().st_size
