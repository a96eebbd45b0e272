"""SSF (Lian et al., 2022): scaled and shifted features."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from capaboost_core.methods.registry import register_method
from capaboost_core.methods.scale_shift import ScaleShiftMethod
from capaboost_core.plan import Plan, Target, in_prefix
from capaboost_core.roles import MATRICES, Roles


@register_method("ssf")
class SSF(ScaleShiftMethod):
    """scale * layer(x) + shift after each linear layer of a block, each norm, and the embedding of patches.

    Scales start from N(1, 0.02) and shifts from N(0, 0.02), and the places are those of the authors' code
    (dongzelian/SSF models/vision_transformer.py:151-154, 189-192, 245-248, 349-354, 378-395, 458-459 at e94e0e7).
    """

    starts_as_base: ClassVar[bool] = False
    spread: ClassVar[float] = 0.02

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """In the order of the model."""
        matrices = {target.path for target in roles.targets(MATRICES, whole=True)}
        taken = [path for path, module in model.named_modules() if path in matrices or _is_taken(path, module, roles)]
        return Plan(tuple(map(Target, taken)), roles.head, roles.switches)


def _is_taken(path: str, module: nn.Module, roles: Roles) -> bool:
    """A norm outside the head, or a product of the embedding."""
    if isinstance(module, nn.LayerNorm):
        return module.weight is not None and not any(in_prefix(path, prefix) for prefix in roles.head)
    embeds = roles.embedding is not None and in_prefix(path, roles.embedding)
    return embeds and isinstance(module, (nn.Linear, nn.Conv2d))
