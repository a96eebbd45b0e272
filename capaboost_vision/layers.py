"""timm's classes as methods adapt them: norms, feed-forward parts, attention with a prefix, blocks with prompts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, maybe_add_mask, resolve_self_attn_mask
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.layers.norm import LayerNorm
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, MacCount
from capaboost_core.methods.adaptformer import AdaptFormer, ParallelFeedForward
from capaboost_core.methods.prefix import PrefixTuning
from capaboost_core.methods.ssf import ScaleShiftMethod, ScaleShiftNorm
from capaboost_core.methods.vpt import VPT, PromptedBlock
from capaboost_core.plan import Target


class ScaleShiftTimmNorm(ScaleShiftNorm, LayerNorm):
    """`timm.layers.LayerNorm`, whose forward may take a faster kernel; merged, it takes torch's."""


ScaleShiftMethod.layers[LayerNorm] = ScaleShiftTimmNorm


class ParallelMlp(ParallelFeedForward, Mlp):
    """timm's feed-forward parts with a bottleneck in parallel: this one is plain, the next two are gated."""


class ParallelGluMlp(ParallelFeedForward, GluMlp):
    pass


class ParallelSwiGLU(ParallelFeedForward, SwiGLU):
    pass


AdaptFormer.layers.update({Mlp: ParallelMlp, GluMlp: ParallelGluMlp, SwiGLU: ParallelSwiGLU})


class PrefixAttention(Adapted, Attention):
    """timm's `Attention` whose tokens also attend to a prefix; `k_norm` is for the keys of tokens only.

    Args:
        base: The frozen attention to adopt.
        config: The adapter's configuration.
        target: Path of the attention.
    """

    def __init__(self, base: Attention, config: PrefixTuning, target: Target):
        self.adopt(base, target.path)
        self.prefix = config.make_prefix(target.path, base.attn_dim, base.qkv.weight)
        self.prefix.train(base.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x (batch, tokens, width) -> the same shape."""
        if not self.enabled:
            return super().forward(x, attn_mask, is_causal)
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        mask = resolve_self_attn_mask(x.shape[1], q, attn_mask, is_causal)
        k, v = self.prefix.prepend(k, v, self.prefix.gate_of(x))
        out = self._attend(q, k, v, self.prefix.extend(mask))
        out = self.norm(out.transpose(1, 2).flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        return self.prefix.macs(needs_gradient)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        scores = maybe_add_mask(q * self.scale @ k.transpose(-2, -1), mask)
        return self.attn_drop(scores.softmax(dim=-1)) @ v


PrefixTuning.layers[Attention] = PrefixAttention


class PromptedViTBlock(PromptedBlock, Block):
    """timm's `Block`, whose attention knows no positions."""

    @property
    def like(self) -> Tensor:
        return cast(Attention, self.attn).proj.weight


VPT.layers[Block] = PromptedViTBlock


@contextlib.contextmanager
def _prompts_aside(model: VisionTransformer) -> Iterator[None]:
    """Make the blocks of a model return the image's tokens alone; prompts pass from block to block beside them.

    Raises:
        UserError: With gradient checkpointing, which would compute blocks again after it.
    """
    handles, held, pending = [], {}, 0
    for block in model.blocks:
        if pending:
            handles.append(
                block.register_forward_pre_hook(lambda _, x: (torch.cat([x[0], held["prompts"]], 1), *x[1:]))
            )
        if isinstance(block, PromptedBlock) and block.enabled:
            pending += (block.prompts.length if block.prompts else 0) - block.removed
        if pending:
            handles.append(block.register_forward_hook(functools.partial(_take_out, held, pending)))
    try:
        if handles and model.grad_checkpointing and torch.is_grad_enabled():
            raise UserError("prompts pass from block to block; call model.set_grad_checkpointing(False) first")
        yield
    finally:
        for handle in handles:
            handle.remove()


def _take_out(held: dict[str, Tensor], count: int, block: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
    held["prompts"] = y[:, y.shape[1] - count :]
    return y[:, : y.shape[1] - count]


def _without_prompts(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap timm's `forward_intermediates` so that its features are those of the image's tokens."""

    @functools.wraps(method)
    def forward_intermediates(self: VisionTransformer, *arguments: Any, **options: Any) -> Any:
        if not any(isinstance(block, PromptedBlock) for block in self.blocks):
            return method(self, *arguments, **options)
        with _prompts_aside(self):
            return method(self, *arguments, **options)

    return forward_intermediates


for _kind in (VisionTransformer, NaFlexVit):
    _kind.forward_intermediates = _without_prompts(_kind.forward_intermediates)
