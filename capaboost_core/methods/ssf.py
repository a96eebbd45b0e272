"""SSF (Lian et al., 2022) and the Hadamard adapter (Chen et al., 2023): trained scales and shifts of frozen layers."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from capaboost_core.layers import Adapted, Mergeable, empty_like_weight
from capaboost_core.methods.method import Method, register_method
from capaboost_core.plan import MATRICES, Plan, Roles, Target, in_prefix
from capaboost_core.sharing.tied import ResetOnMaterialize


class ScaleShift(ResetOnMaterialize):
    """scale * y + shift along the last dimension but `after`."""

    def __init__(self, weight: Tensor, spread: float, after: int):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(empty_like_weight(weight, len(weight))) for _ in range(2))
        self.spread, self.after = spread, after
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scale, 1.0, self.spread)
        nn.init.normal_(self.shift, 0.0, self.spread)

    def forward(self, y: Tensor) -> Tensor:
        scale, shift = (p.to(y.dtype).view(-1, *(1,) * self.after) for p in (self.scale, self.shift))
        return scale * y + shift


class ScaleShiftLayer(Mergeable):
    """scale * layer(x) + shift, with an entry of both for each output or channel of the frozen layer.

    Merged, it is the layer with the weight scale * W and the bias scale * b + shift.

    Args:
        base: The frozen layer to adopt.
        config: The method's configuration.
        target: Path of the layer.
    """

    after: ClassVar[int] = 0  # dimensions of the output behind the channels
    weight: Tensor
    bias: Tensor | None

    def __init__(self, base: nn.Module, config: ScaleShiftMethod, target: Target):
        self.adopt(base, target.path)
        self.scale_shift = ScaleShift(self.weight, config.spread, self.after)
        if self.bias is None:
            self.mergeable, self.not_mergeable_because = False, f"a shift for {target.path}, which has no bias,"
        self.allow_merging()
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x as for the frozen layer."""
        sums = self.current_merged() if self.enabled else None
        if sums is not None:
            return self.compute(x, sums.weight, sums.bias)
        y = super().forward(x)
        return self.scale_shift(y) if self.enabled else y

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the frozen layer's class computes with a weight and a bias."""
        raise NotImplementedError

    def merged_weight(self) -> tuple[Tensor, Tensor]:
        assert self.bias is not None, "a layer without a bias is not mergeable"
        scale, shift = self.scale_shift.scale, self.scale_shift.shift
        weight = scale.view(-1, *(1,) * (self.weight.ndim - 1)) * self.weight
        return weight.to(self.weight.dtype), (scale * self.bias + shift).to(self.bias.dtype)


class ScaleShiftLinear(ScaleShiftLayer, nn.Linear):
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class ScaleShiftConv2d(ScaleShiftLayer, nn.Conv2d):
    after: ClassVar[int] = 2

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class ScaleShiftNorm(ScaleShiftLayer, nn.LayerNorm):
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class ScaleShiftMethod(Method):
    """A method of such layers.

    Attributes:
        spread: Standard deviation of the first values around a scale of 1 and a shift of 0.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {
        nn.Linear: ScaleShiftLinear,
        nn.Conv2d: ScaleShiftConv2d,
        nn.LayerNorm: ScaleShiftNorm,
    }
    wanted: ClassVar[str] = "nn.Linear, nn.Conv2d or nn.LayerNorm"
    spread: ClassVar[float] = 0.0


@register_method("ssf")
class SSF(ScaleShiftMethod):
    """scale * layer(x) + shift after each linear layer of a block, each norm, and the embedding of patches.

    Scales start from N(1, 0.02) and shifts from N(0, 0.02), and the targets are those of the authors' code
    (dongzelian/SSF models/vision_transformer.py:151-154, 189-192, 245-248, 349-354, 378-395, 458-459 at e94e0e7).
    """

    starts_as_base: ClassVar[bool] = False
    spread: ClassVar[float] = 0.02

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """In the order of the model."""
        matrices = {target.path for target in roles.targets(MATRICES, whole=True)}
        taken = [path for path, module in model.named_modules() if path in matrices or _is_taken(path, module, roles)]
        return Plan(tuple(map(Target, taken)), roles.head, roles.required_flags)


def _is_taken(path: str, module: nn.Module, roles: Roles) -> bool:
    """A norm outside the head, or a product of the embedding."""
    if isinstance(module, nn.LayerNorm):
        return module.weight is not None and not any(in_prefix(path, prefix) for prefix in roles.head)
    embeds = roles.embedding is not None and in_prefix(path, roles.embedding)
    return embeds and isinstance(module, (nn.Linear, nn.Conv2d))


@register_method("hadamard")
class HadamardAdapter(ScaleShiftMethod):
    """w * A + b on the output A of each attention, before the residual sum; w starts at 1 and b at 0.

    The paper (arXiv 2407.11033) trains the norm that follows as well, 0.033 % of BERT-base together. Here a weight
    and a bias go over the frozen norm's, which gives the same functions and can be taken away again. Its first stage,
    which trains the classifier alone, is not there: the head trains along.
    """

    norms: bool = Field(default=True, description="Train the norm between attention and feed-forward part too.")

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        targets = roles.targets(("o", "attention_norm") if self.norms else ("o",))
        return Plan(targets, roles.head, roles.required_flags)
