"""What is measured: a frozen model, its input, and where its adapters go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from capaboost_core import CapaBoostConfig, Plan
from capaboost_core.plan import in_prefix
from capaboost_text.roles import roles_of as roles_of_text
from capaboost_vision.roles import roles_of as roles_of_vision

CLASSES = 100
ATTENTION_QV = CapaBoostConfig()


@dataclass(frozen=True)
class Workload:
    """A model with random weights; speed does not depend on their values.

    Attributes:
        create: Makes the frozen model.
        inputs: Makes a batch of the given size.
        plan: Finds the targets, q and v of every attention, and the head.
        peft_targets: The same targets by the names that peft takes. Where timm fuses q, k and v, stock
            peft adapts the fused layer whole; at equal r that is the same number of parameters.
    """

    create: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    plan: Callable[[nn.Module, CapaBoostConfig], Plan]
    peft_targets: tuple[str, ...]


def vit(name: str, size: int, **changes: Any) -> Workload:
    return Workload(
        create=lambda: timm.create_model(name, num_classes=CLASSES, **changes),
        inputs=lambda batch: torch.randn(batch, 3, size, size),
        plan=lambda model, method: method.plan(model, roles_of_vision(model)),
        peft_targets=("qkv",),
    )


def roberta(length: int, **changes: int) -> Workload:
    settings: dict[str, Any] = {**changes, "max_position_embeddings": 514, "type_vocab_size": 1, "num_labels": CLASSES}
    config = RobertaConfig(**settings)
    return Workload(
        create=lambda: RobertaForSequenceClassification(config),
        inputs=lambda batch: torch.randint(5, config.vocab_size, (batch, length)),
        plan=lambda model, method: method.plan(model, roles_of_text(model)),
        peft_targets=("query", "value"),
    )


TINY_TEXT = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
WORKLOADS = {
    "vit-small": vit("vit_small_patch16_224", 224),
    "vit-base": vit("vit_base_patch16_224", 224),
    "roberta-base": roberta(128, vocab_size=50265),
    "tiny-vit": vit("vit_tiny_patch16_224", 32, img_size=32, embed_dim=32, depth=2, num_heads=2),
    "tiny-roberta": roberta(16, **TINY_TEXT),
}


def loss_of(model: Callable[..., Any], inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(model, inputs), labels)


def logits_of(model: Callable[..., Any], inputs: Tensor) -> Tensor:
    """The model's logits, which transformers wraps and timm does not."""
    out = model(inputs)
    return getattr(out, "logits", out)


def copy_with_own(base: nn.Module, own: tuple[str, ...]) -> nn.Module:
    """A copy that shares the base's tensors, but has its own of the modules below the paths `own`.

    Peers that share the frozen weights fit into memory together, and read the same pages.
    """
    tensors = [*base.named_parameters(), *base.named_buffers()]
    shared = {id(t): t for name, t in tensors if not any(in_prefix(name, prefix) for prefix in own)}
    return copy.deepcopy(base, shared)
