"""timm's standard block with prompts."""

from __future__ import annotations

from timm.models.vision_transformer import Block
from torch import Tensor

from capaboost_core.methods.vpt import VPT, PromptedBlock


class PromptedViTBlock(PromptedBlock, Block):
    """timm's `Block`, whose attention knows no positions."""

    @property
    def like(self) -> Tensor:
        return self.attn.proj.weight


VPT.layers[Block] = PromptedViTBlock
