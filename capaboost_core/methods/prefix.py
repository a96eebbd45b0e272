"""CapaBoost-Prefix, and prefix tuning (Li & Liang, 2021) without its MLP."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, MacCount, empty_like_weight, macs_of
from capaboost_core.methods.method import Method, register_method
from capaboost_core.plan import Plan, Roles
from capaboost_core.sharing.masks import PLAIN, TIED, mask_bits
from capaboost_core.sharing.tied import TiedWeight, TyingSettings


class Prefix(nn.Module):
    """Keys [P_k * mk_1; ..; P_k * mk_d; x W_k] and values [P_v * mv_1; ..; P_v * mv_d; x W_v] (Eq. 5).

    P_k and P_v of shape (r, width) are trained; their d masked copies are d*r vectors, which every token
    attends to (Li & Liang, 2021, without their MLP). A masked entry is a zero within its vector (Eq. 3):
    the vector still counts in the softmax. There is no scaling, nothing to merge, and no start as the
    base model: the softmax counts the prefix from the first step.

    Both start from N(0, 0.02), the scale of BERT's and ViT's own embeddings. With near-zero keys the d*r
    scores are near 0, and with near-zero values the prefix then just takes its share of the attention;
    wider values would be noise that a frozen model has never seen.

    Worked example: r = 64, d = 2, 12 heads of size 64, keys of 128 tokens in a batch of 32, that is
    (32, 12, 128, 64): P_k is (64, 768), its copies (128, 768), by head (12, 128, 64), and the keys
    become (32, 12, 256, 64); a mask (32, 1, 128, 128) becomes (32, 1, 128, 256).

    Args:
        config: The adapter's configuration; r is the length of one copy.
        path: Module path that keys the masks.
        width: Number of key heads times head size; heads are consecutive slices of it.
        weight: A frozen weight, which gives device and precision.
    """

    keys: TiedWeight
    values: TiedWeight

    def __init__(self, config: PrefixTuning, path: str, width: int, weight: Tensor):
        super().__init__()
        fill = partial(nn.init.normal_, std=0.02)
        shape = (config.r, width)
        for name in ("keys", "values"):
            masks, initial = partial(mask_bits, config, path, name, shape), fill(empty_like_weight(weight, *shape))
            setattr(self, name, config.make_weight(name, masks, initial, fill))
        self.length = config.num_tied * config.r

    def gate_of(self, x: Tensor) -> Tensor | None:
        """The factor of the prefix, (batch, 1, 1, 1), as a function of the attention's input; None is 1."""

    def prepend(self, key: Tensor, value: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, tokens, size) -> (batch, heads, d*r + tokens, size)."""
        return _before(self.keys, key, gate), _before(self.values, value, gate)

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """Of keys, then of values; `Adapted.macs` of the attention."""
        return macs_of([[self.keys], [self.values]], needs_gradient)

    def extend(self, mask: Tensor | None) -> Tensor | None:
        """Let a mask (..., tokens) show the prefix: 0 where it is added to scores, else True or 1."""
        if mask is None:
            return None
        return F.pad(mask, (self.length, 0), value=0.0 if mask.is_floating_point() else 1)


def _before(weight: TiedWeight, tokens: Tensor, gate: Tensor | None) -> Tensor:
    batch, heads, _, size = tokens.shape
    by_head = weight.copies().reshape(-1, heads, size).transpose(0, 1).to(tokens.dtype)
    by_head = by_head.expand(batch, -1, -1, -1) if gate is None else gate.to(tokens.dtype) * by_head
    return torch.cat([by_head, tokens], dim=2)


@register_method("prefix", capaboost_prefix=TIED, prefix=PLAIN)
class PrefixTuning(TyingSettings, Method):
    """r keys and values in front of those of each attention; d masked views of them, so d * r vectors.

    An attention takes part if an integration has put a layer for its class into `layers`.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {}
    layers_from_integration: ClassVar[bool] = True
    recipe: ClassVar[str] = "padapter"
    budget: ClassVar[str | None] = "r"
    starts_as_base: ClassVar[bool] = False

    r: int = Field(default=8, ge=1, le=65536, description="Length of one prefix.")

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """Each attention."""
        targets = roles.targets(("attention",))
        if not targets:
            raise UserError(f"method prefix knows no attention of {type(model).__name__}; choose lora or an adapter")
        return Plan(targets, roles.head, roles.required_flags)

    def make_prefix(self, path: str, width: int, weight: Tensor) -> Prefix:
        """What an attention puts before its keys and values; see `Prefix`."""
        return Prefix(self, path, width, weight)
