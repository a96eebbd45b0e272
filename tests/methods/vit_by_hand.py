"""timm's ViT written out in double precision, with a place for each method to act."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.compatibility.models import VIT, base, drawn

HEADS, DEPTH, PATCH = VIT["num_heads"], VIT["depth"], 16
IMAGES = drawn("images", (2, 3, 32, 32), 1.0).double()
Compute = Callable[[Tensor], Tensor]


def unchanged(path: str, x: Tensor, compute: Compute) -> Tensor:
    return compute(x)


def vit_by_hand(
    act: Callable[[str, Tensor, Compute], Tensor] = unchanged,
    before: Callable[[int, Tensor], Tensor] = lambda index, tokens: tokens,
    after: Callable[[int, Tensor], Tensor] = lambda index, tokens: tokens,
) -> Tensor:
    """Logits of the tiny base ViT for IMAGES, in float64.

    Args:
        act: Called with the path of each layer, its input, and what the frozen layer computes.
        before: Called with the index of each block and the tokens (batch, tokens, width) that it gets.
        after: The same with the tokens that it gives.
    """
    weights = {name: p.detach().double() for name, p in base("vit").named_parameters()}

    def linear(path: str, x: Tensor) -> Tensor:
        return act(path, x, lambda x: x @ weights[f"{path}.weight"].flatten(1).T + weights[f"{path}.bias"])

    def norm(path: str, x: Tensor) -> Tensor:
        return act(path, x, lambda x: _standard(x) * weights[f"{path}.weight"] + weights[f"{path}.bias"])

    tokens = linear("patch_embed.proj", _patches(IMAGES))
    tokens = torch.cat([weights["cls_token"].expand(2, -1, -1), tokens], 1) + weights["pos_embed"]
    for index in range(DEPTH):
        block, tokens = f"blocks.{index}", before(index, tokens)
        mixed = _attend(linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens)))
        tokens = tokens + linear(f"{block}.attn.proj", mixed)
        hidden = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens))
        tokens = after(index, tokens + linear(f"{block}.mlp.fc2", nn.functional.gelu(hidden)))
    return linear("head", norm("norm", tokens)[:, 0])


def _standard(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _patches(images: Tensor) -> Tensor:
    """(batch, 3, 32, 32) -> (batch, 4, 3 * 16 * 16), row by row."""
    rows = [images[..., i : i + PATCH, j : j + PATCH].flatten(1) for i in (0, PATCH) for j in (0, PATCH)]
    return torch.stack(rows, 1)


def _attend(qkv: Tensor) -> Tensor:
    size = qkv.shape[-1] // 3 // HEADS
    q, k, v = (part.unflatten(-1, (HEADS, size)).transpose(1, 2) for part in qkv.chunk(3, -1))
    return ((q @ k.transpose(-2, -1) / size**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
