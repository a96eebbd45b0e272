"""A frozen layer that carries a trainable addition: what LoRA and the adapters have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from capaboost_core.sharing.tied import TiedWeight

# The containers in which nn.Module keeps a module's content.
CONTENT = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


@dataclass(frozen=True)
class Product:
    """Multiply-adds with one trained weight for each row of the layer's input.

    Attributes:
        executed: What dense kernels do.
        kept: Those with entries that masks keep.
        weight_trains: Whether the weight gets a gradient.
        input_needs_gradient: Whether what the weight meets needs one.
    """

    executed: int
    kept: int
    weight_trains: bool
    input_needs_gradient: bool

    @property
    def gradients(self) -> int:
        """Products of the same size in a backward pass."""
        return self.weight_trains + self.input_needs_gradient


class Adapted(nn.Module):
    """Mixin of layers that adopt a base layer's parameters and children, so that its state-dict keys stay.

    It stands before the base's class: `class CapaLinear(Adapted, nn.Linear)`.

    Attributes:
        path: Its module path in the base model.
        mergeable: Whether its weight and bias can hold its addition; it then is a `Mergeable`.
        obstacle: What keeps it from that.
        low_rank: Whether its addition is low-rank increments of its weight; it then has `slices` and
            `factors_by_slice`, as `CapaLinear`.
        traced: Whether its cost is in a trace of the model, as more tokens for frozen layers, and not in `products`.
        disabled: How many `disable` contexts it is in; within one it computes as its base.
    """

    mergeable: ClassVar[bool] = False
    obstacle: ClassVar[str] = "a nonlinearity"
    low_rank: ClassVar[bool] = False
    traced: ClassVar[bool] = False

    def adopt(self, base: nn.Module, path: str) -> None:
        """Adopt everything that the base holds; called in place of its class's constructor."""
        nn.Module.__init__(self)
        own = vars(self).keys() - set(CONTENT + HOOKS)
        self.base_attributes = {name: v for name, v in vars(base).items() if name not in {*CONTENT, *HOOKS, *own}}
        self.base_content = {name: frozenset(vars(base)[name]) for name in CONTENT}
        self.base_class = type(base)
        for name in CONTENT + HOOKS:
            vars(self)[name].update(vars(base)[name])
        for name, value in self.base_attributes.items():
            setattr(self, name, value)
        self.adopted = frozenset(name for name, _ in base.named_parameters())
        self.path, self.disabled = path, 0
        self.training = base.training

    @property
    def enabled(self) -> bool:
        return not self.disabled

    def plain(self) -> nn.Module:
        """The frozen layer as it was before `adopt`, with its current parameters."""
        layer = self.base_class.__new__(self.base_class)
        nn.Module.__init__(layer)
        for name, held in self.base_content.items():
            content = vars(self)[name]  # a set of names, or values by name
            kept = [key for key in content if key in held]
            vars(layer)[name].update(kept if isinstance(content, set) else {key: content[key] for key in kept})
        for name in HOOKS:
            vars(layer)[name].update(vars(self)[name])
        vars(layer).update(self.base_attributes)
        return layer.train(self.training)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of the addition, without those adopted from the base."""
        return {name: p for name, p in self.named_parameters() if name not in self.adopted}

    def tied_weights(self) -> dict[str, TiedWeight]:
        return {name: module for name, module in self.named_modules() if isinstance(module, TiedWeight)}

    def products(self, needs_gradient: bool) -> list[Product]:
        """The products of its addition; a layer whose trained matrices are not tied weights overrides it.

        The first half of the tied weights (A, down, keys) meets the layer's input, or a frozen image of it; the second
        half (B, up, values) meets what the first half made.

        Args:
            needs_gradient: Whether the layer's input needs one.
        """
        weights = list(self.tied_weights().values())
        first, second = weights[: len(weights) // 2], weights[len(weights) // 2 :]
        inner = needs_gradient or any(weight.packed.requires_grad for weight in first)
        return [
            Product(weight.executed, weight.kept, weight.packed.requires_grad, needed)
            for part, needed in ((first, needs_gradient), (second, inner))
            for weight in part
        ]


def dropout_of(probability: float) -> nn.Module:
    return nn.Dropout(probability) if probability else nn.Identity()


def empty_like_weight(weight: torch.Tensor, *shape: int) -> torch.Tensor:
    """An empty tensor for a new parameter, on the device of a frozen weight, in float32 or in its float64."""
    dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
    return torch.empty(*shape, device=weight.device, dtype=dtype)
