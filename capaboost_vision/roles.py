"""Which layers of timm's architectures play which role: an `Architecture` for each way of building a block."""

from __future__ import annotations

import re
from dataclasses import replace

from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.maxxvit import MaxxVit
from timm.models.mvitv2 import MultiScaleVit
from timm.models.naflexvit import NaFlexVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.tiny_vit import TinyVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from timm.models.xcit import Xcit
from torch import nn

from capaboost_core.plan import Architecture, Roles, classifier_of, in_prefix, linear_shape, thirds
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
STAGES = replace(VIT, blocks=r"stages\.\d+\.blocks\.\d+")
NO_ATTENTION = "ConvNeXt has no attention; give the layers as targets, such as [mlp.fc1, mlp.fc2]"


def _maxvit_widths(model: nn.Module, qkv: nn.Module) -> tuple[int, int, int] | None:
    head_first = any(getattr(module, "head_first", False) for module in model.modules())
    return None if head_first else thirds(qkv)


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
    VisionTransformerRelPos: VIT,
    VisionTransformerSAM: VIT,
    TinyVit: replace(STAGES, attention_norm="mlp.norm", widths=lambda model, qkv: None),
    MaxxVit: replace(STAGES, blocks=STAGES.blocks + r"\.attn_(block|grid)", embedding="stem", widths=_maxvit_widths),
    ConvNeXt: replace(
        STAGES, embedding="stem", missing=dict.fromkeys(("q", "k", "v", "o", "attention"), NO_ATTENTION)
    ),
}


def roles_of(model: nn.Module) -> Roles:
    """The roles of a timm model's layers; of a class outside FAMILIES, or built unlike its class, only the head.

    Methods that need blocks then say which layers can be given as targets.
    """
    check_bare(model, ())
    family = next((family for cls, family in FAMILIES.items() if isinstance(model, cls)), None)
    head = _head(model)
    found = family and family.roles(model, head)
    if found and found.blocks and _is_linear(model, found):
        return found
    return Roles(head=head, missing=_explicit(model, head))


def _is_linear(model: nn.Module, roles: Roles) -> bool:
    """Whether the feed-forward parts are linear layers, where timm may have convolutions in their place."""
    paths = [module.path for block in roles.blocks for module in block.modules["f2"]]
    return all(linear_shape(model.get_submodule(path)) for path in paths)


def _explicit(model: nn.Module, head: tuple[str, ...]) -> str:
    """What to type for a class without roles: the ends of the paths of its linear layers."""
    linear = [path for path, module in model.named_modules() if linear_shape(module)]
    outside = [path for path in linear if not any(in_prefix(path, prefix) for prefix in head)]
    ends = sorted({re.sub(r".*\.\d+\.|^\d+\.", "", path) for path in outside})
    advice = f"give layers as targets, of [{', '.join(ends)}]" if ends else "it has no linear layer to adapt"
    return f"capaboost does not support {type(model).__name__} by itself; {advice}, or choose another model"


def _head(model: nn.Module) -> tuple[str, ...]:
    """The path of the classifier as timm records it, or where there is no record as the model's attributes say."""
    recorded = timm_cfg(model).get("classifier") or classifier_of(model) or "head"
    return (recorded,) if isinstance(recorded, str) else tuple(recorded)
