"""Which layers of timm's architectures play which role: an `Architecture` for each way of building a block."""

from __future__ import annotations

from dataclasses import replace

from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.mvitv2 import MultiScaleVit
from timm.models.naflexvit import NaFlexVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.plan import Architecture, Roles, classifier_of
from capaboost_core.wrappers import check_bare, timm_cfg
from capaboost_vision import layers  # noqa: F401  register timm's classes that methods adapt

# The feed-forward parts of timm.layers.mlp: plain and packed (fc1), SwiGLU (fc1_g, fc1_x), ViTamin's GeGLU (w0 to w2).
VIT = Architecture(
    blocks=r"blocks\.\d+",
    q="attn.q_proj",
    k="attn.k_proj",
    v="attn.v_proj",
    qkv="attn.qkv",
    o="attn.proj",
    f1=("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.w0", "mlp.w1"),
    f2=("mlp.fc2", "mlp.w2"),
    attention="attn",
    attention_norm="norm2",
    feed_forward="mlp",
    embedding="patch_embed",
    required_flags=("attn.qkv_bias_separate",),
)
CLASS_ATTENTION = replace(VIT, q="attn.q", k="attn.k", v="attn.v")
# VisionTransformer covers DeiT, DINOv2, CLIP and SigLIP; Eva covers EVA02, DINOv3 and the rotary ViTs.
FAMILIES: dict[type[nn.Module], Architecture] = {
    VisionTransformer: VIT,
    Beit: VIT,
    Eva: VIT,
    SwinTransformer: VIT,
    SwinTransformerV2: replace(VIT, attention_norm="norm1"),
    NaFlexVit: replace(VIT, embedding="embeds"),
    PoolingVisionTransformer: VIT,
    MultiScaleVit: VIT,
    Hiera: VIT,
    Xcit: replace(CLASS_ATTENTION, blocks=r"(cls_attn_)?blocks\.\d+"),
    Cait: replace(CLASS_ATTENTION, blocks=r"blocks(_token_only)?\.\d+"),
}


def roles_of(model: nn.Module) -> Roles:
    """The roles of a timm model's layers.

    Raises:
        UserError: If its class is not in FAMILIES, or its blocks are built unlike those of its class.
    """
    check_bare(model, ())
    family = next((family for cls, family in FAMILIES.items() if isinstance(model, cls)), None)
    found = family and family.roles(model, _head(model))
    if not found or not found.blocks:
        names = ", ".join(cls.__name__ for cls in FAMILIES)
        raise UserError(f"capaboost does not support {type(model).__name__}; choose a model of class {names}")
    return found


def _head(model: nn.Module) -> tuple[str, ...]:
    """The path of the classifier as timm records it, or where there is no record as the model's attributes say."""
    recorded = timm_cfg(model).get("classifier") or classifier_of(model) or "head"
    return (recorded,) if isinstance(recorded, str) else tuple(recorded)
