"""timm's standard block with prompts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.methods.vpt import VPT, PromptedBlock


class PromptedViTBlock(PromptedBlock, Block):
    """timm's `Block`, whose attention knows no positions."""

    @property
    def like(self) -> Tensor:
        return self.attn.proj.weight


VPT.layers[Block] = PromptedViTBlock


@contextlib.contextmanager
def _aside(model: VisionTransformer) -> Iterator[None]:
    """Within it the blocks of a model give the image's tokens alone: prompts that one hands on pass beside them.

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
    """timm's `forward_intermediates`, whose features are those of the image's tokens."""

    @functools.wraps(method)
    def forward_intermediates(self: VisionTransformer, *arguments: Any, **options: Any) -> Any:
        if not any(isinstance(block, PromptedBlock) for block in self.blocks):
            return method(self, *arguments, **options)
        with _aside(self):
            return method(self, *arguments, **options)

    return forward_intermediates


for _kind in (VisionTransformer, NaFlexVit):
    _kind.forward_intermediates = _without_prompts(_kind.forward_intermediates)
