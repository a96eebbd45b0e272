"""The parts of NOAH's blocks, which compute with the first of their ranks, hidden values or prompts alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from capaboost_core.methods.adaptformer import ParallelBottleneck
from capaboost_core.methods.capa_linear import CapaLinear
from capaboost_core.methods.scaled import Scaled
from capaboost_core.methods.subnets import Subnet
from capaboost_core.methods.vpt import PromptedBlock, Prompts


class Sliced(nn.Module):
    """A part of a block, of which a subnet takes the first `width`; without one it is whole.

    One of width 0 adds zeros, and its parameters get gradients of zero: several processes need one for each.
    """

    width: int | None = None

    def added(self) -> Iterable[nn.Parameter]:
        """Its own parameters."""
        return self.parameters()


class SlicedLinear(Sliced, CapaLinear):
    """`CapaLinear` with the first rows of A, and columns of B."""

    def factor(self, name: str, training: bool, dtype: torch.dtype | None) -> Tensor:
        return super().factor(name, training, dtype)[..., : self.width, :]

    def added(self) -> Iterable[nn.Parameter]:
        return self.own_parameters().values()


class SlicedBottleneck(Sliced, ParallelBottleneck):
    """U f(D h + c) + e with the first rows of D and c and columns of U, and f(x) = x sigmoid(1.702 x).

    The activation is the authors' (ZhangYuanhan-AI/NOAH model/module/adapter_super.py:8-10 at e9c55f3).
    """

    def __init__(self, config: Scaled, path: str, width: int, weight: Tensor):
        super().__init__(config, path, width, weight)
        self.activation = quick_gelu

    def projection(self, name: str) -> tuple[Tensor, Tensor]:
        copies, bias = super().projection(name)
        bias = bias[: self.width] if name == "down" else bias if self.width != 0 else bias * 0.0
        return copies[..., : self.width, :], bias


class SlicedPrompts(Sliced, Prompts):
    """`Prompts` with the first of each masked view."""

    @property
    def length(self) -> int:
        return super().length if self.width is None else self.num_tied * self.width

    def copies(self) -> Tensor:
        return super().copies()[:, : self.width]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def parts_of(model: nn.Module) -> list[list[Any]]:
    """The parts by block, in the order of `Subnet`."""
    kinds = (SlicedLinear, SlicedBottleneck, SlicedPrompts)
    return [[module for module in model.modules() if isinstance(module, kind)] for kind in kinds]


def cut(model: nn.Module, subnet: Subnet) -> None:
    """Have a model whose blocks have all parts compute as a subnet of it."""
    for parts, widths in zip(parts_of(model), subnet, strict=True):
        for part, width in zip(parts, widths, strict=True):
            part.width = width
    pass_on([module for module in model.modules() if isinstance(module, PromptedBlock)])


def pass_on(blocks: Sequence[PromptedBlock]) -> None:
    """Have prompts stay among the tokens up to the next block that has its own, or the last."""
    here, own = 0, [0 if block.prompts is None else block.prompts.length for block in blocks]
    for block, length, after in zip(blocks, own, [*own[1:], None], strict=True):
        here = length or here
        block.removed = 0 if after == 0 else here
