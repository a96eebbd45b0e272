"""The embedded backbone: a small ViT at 64 px, pretrained on Tiny ImageNet, that ships with the package."""

from functools import partial
from pathlib import Path
from typing import Any

from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.norm import GroupNorm1
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

EMBEDDED = "capaboost_vit_micro_patch8_64"
WEIGHTS = Path(__file__).parent / "weights" / f"{EMBEDDED}.safetensors"

default_cfgs = generate_default_cfgs(
    {
        f"{EMBEDDED}.tiny_imagenet": {
            "file": str(WEIGHTS),
            "input_size": (3, 64, 64),
            "num_classes": 200,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.backbone.0.conv",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


def _stem(width: int) -> nn.Module:
    """Three stride-2 convolutions, 64 px -> 8 x 8 tokens; early convolutions train faster than one
    patch projection (Xiao et al., 2021). Group norm, so that a frozen stem has no running statistics.
    """
    return ConvStem(channels=(width // 4, width // 2, width), norm_layer=GroupNorm1, act_layer=nn.GELU)


@register_model
def capaboost_vit_micro_patch8_64(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """ViT of width 192, 6 blocks and 3 heads on the 8 x 8 patches of a 64 px image, average pooling."""
    width = kwargs.get("embed_dim", 192)
    arguments: dict[str, Any] = dict(
        img_size=64,
        patch_size=1,  # of the stem's output, each position of which stands for 8 x 8 pixels
        embed_dim=width,
        depth=6,
        num_heads=3,
        class_token=False,
        global_pool="avg",
        embed_layer=partial(HybridEmbed, backbone=_stem(width), proj=False),
    )
    return build_model_with_cfg(
        VisionTransformer,
        "capaboost_vit_micro_patch8_64",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,  # resamples the position embedding to another `img_size`
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},  # as timm's own ViTs
        **dict(arguments, **kwargs),
    )
