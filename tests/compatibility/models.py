"""Tiny base models whose weights follow from their names, so that no file has to hold them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from functools import cache

import numpy as np
import timm
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, ModernBertConfig

import capaboost_text
import capaboost_vision

VIT = dict(img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3)
ENCODER = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


def drawn(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    """Normal values that follow from a name, in any version of any library."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(2 * int(np.prod(shape)))
    uniform = (words >> 11).astype(np.float64) / 2**53
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[::2])), 2 * np.pi * uniform[1::2]
    return torch.from_numpy((scale * radius * np.cos(angle)).astype(np.float32).reshape(shape))


def filled(model: nn.Module) -> nn.Module:
    """The model with every parameter drawn after its name; norms' weights stay near one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            one = float("norm" in name.lower() and name.endswith("weight"))
            parameter.copy_(one + drawn(name, tuple(parameter.shape), 0.2))
    return model.eval()


def _encoder(config) -> nn.Module:
    return AutoModelForSequenceClassification.from_config(config)


BASES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", **VIT),
    "beit": lambda: timm.create_model("beit_base_patch16_224", **VIT),
    "bert": lambda: _encoder(BertConfig(**ENCODER, max_position_embeddings=16, num_labels=3)),
    "modernbert": lambda: _encoder(
        ModernBertConfig(**ENCODER, num_labels=3, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1,
                         eos_token_id=2)
    ),
}  # fmt: skip


def base(kind: str) -> nn.Module:
    """A base model in evaluation."""
    return copy.deepcopy(_made(kind))


@cache
def _made(kind: str) -> nn.Module:
    with torch.random.fork_rng():  # the first of a kind draws no other numbers than the next
        return filled(BASES[kind]())


def adapt(model: nn.Module, config: dict) -> nn.Module:
    """The model adapted by its integration, with drawn values in all that is trained."""
    inject = capaboost_text.inject if hasattr(model, "config") else capaboost_vision.inject
    return inject(model, config)


def logits(model: nn.Module) -> Tensor:
    """Logits (2, 3) of fixed inputs."""
    if hasattr(model, "config"):
        return model(input_ids=torch.tensor([[1, 7, 9, 4, 2], [1, 11, 3, 8, 2]])).logits
    return model(drawn("images", (2, 3, 32, 32), 1.0).to(next(model.parameters()).dtype))
