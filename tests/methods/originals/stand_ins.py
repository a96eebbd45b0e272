"""What the authors' VPT is built on, made of timm's ViT."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Embeddings(nn.Module):
    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        return self.vit._pos_embed(self.vit.patch_embed(images))


class Layer(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        return self.block(tokens), None


class Encoder(nn.Module):
    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.layer, self.encoder_norm, self.vis = nn.ModuleList(map(Layer, vit.blocks)), vit.norm, False

    def forward(self, tokens: Tensor) -> tuple[Tensor, list]:
        for layer in self.layer:
            tokens, _ = layer(tokens)
        return self.encoder_norm(tokens), []


class Transformer(nn.Module):
    """The class that `PromptedTransformer` extends; `config` has the ViT beside what the authors have there."""

    def __init__(self, config: Any, img_size: int, vis: bool):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(config.vit), Encoder(config.vit)
