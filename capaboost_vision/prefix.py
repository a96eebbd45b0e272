"""timm's standard attention with a trainable prefix."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers.attention import Attention, maybe_add_mask, resolve_self_attn_mask
from torch import Tensor

from capaboost_core.adapted import Adapted, Product
from capaboost_core.methods.prefix import PrefixTuning
from capaboost_core.plan import Target


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
        out = self._attend(q, *self.prefix.prepend(k, v, self.prefix.gate_of(x)), self.prefix.extend(mask))
        out = self.norm(out.transpose(1, 2).flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))

    def products(self, needs_gradient: bool) -> list[Product]:
        return self.prefix.products(needs_gradient)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        scores = maybe_add_mask(q * self.scale @ k.transpose(-2, -1), mask)
        return self.attn_drop(scores.softmax(dim=-1)) @ v


PrefixTuning.layers[Attention] = PrefixAttention
