"""Where the adapters of a timm model go."""

from __future__ import annotations

import re
from collections.abc import Iterator

from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from capaboost_core.config import CapaBoostConfig
from capaboost_core.errors import UserError
from capaboost_core.method_settings import TARGET_WORDS
from capaboost_core.plan import Plan, Target, plan_suffixes
from capaboost_vision.prefix import check_attention

# ViT covers DeiT, DINOv2, CLIP and SigLIP; Eva covers EVA02, DINOv3 and the rotary ViTs.
SUPPORTED = (VisionTransformer, Beit, Eva, SwinTransformer, SwinTransformerV2)
BLOCK = re.compile(r"(^|\.)blocks\.\d+$")


def plan(model: nn.Module, config: CapaBoostConfig) -> Plan:
    """Plan an adapter for a timm model.

    LoRA goes to q and v (`attention-qv`, the default) or to q, k, v, o, f1 and f2 (`all-linear`), each
    of q, k, v with an increment of its own also where timm fuses them; `fused-qkv` takes the fused layer as
    one, with an A that q, k and v share, as NOAH's code and a plain peft LoRA on `qkv` do. PAdapter follows
    the last layer of each feed-forward part, HAdapter that and each attention's output projection. A prefix
    goes to each attention.

    Raises:
        UserError: If the model's class is not supported, its attention takes no prefix or fuses no q, k and v,
            or an explicit target matches nothing.
    """
    check_supported(model)
    if config.after_dropout:
        raise UserError("after_dropout is for transformers encoders; a timm block drops nothing there, so drop it")
    head = _head(model)
    if config.method in ("linear", "full"):
        return Plan((), head)
    if config.targets not in TARGET_WORDS:
        suffixes = (config.targets,) if isinstance(config.targets, str) else config.targets
        explicit = plan_suffixes(model, suffixes, head)
        return Plan(explicit.targets, head, _switches(model))
    targets = tuple(target for path, block in _blocks(model) for target in _block_targets(path, block, config))
    return Plan(targets, head, _switches(model))


def check_supported(model: nn.Module) -> None:
    """Refuse a model by the name of its class.

    Raises:
        UserError: If it is none of the supported families, or its blocks are built unlike theirs.
    """
    if not isinstance(model, SUPPORTED) or not list(_blocks(model)):
        names = ", ".join(cls.__name__ for cls in SUPPORTED)
        raise UserError(f"capaboost does not support {type(model).__name__}; choose a model of class {names}")


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Transformer blocks with an attention and a feed-forward part, by path; an attention pool is none."""
    for path, module in model.named_modules():
        if BLOCK.search(path) and hasattr(module, "attn") and hasattr(module, "mlp"):
            yield path, module


def _block_targets(path: str, block: nn.Module, config: CapaBoostConfig) -> Iterator[Target]:
    if config.method == "lora":
        yield from _attention_targets(f"{path}.attn", block.attn, config.targets)
        if config.targets == "all-linear":
            yield Target(f"{path}.attn.proj")
            yield from (Target(f"{path}.mlp.{name}") for name, _ in _linears(block.mlp))
        return
    if config.method == "prefix":
        check_attention(f"{path}.attn", block.attn)
        yield Target(f"{path}.attn")
        return
    if config.method == "hadapter":
        yield Target(f"{path}.attn.proj")
    yield Target(f"{path}.mlp.{_linears(block.mlp)[-1][0]}")


def _attention_targets(path: str, attention: nn.Module, targets: str) -> Iterator[Target]:
    fused, wanted = getattr(attention, "qkv", None), "qv" if targets == "attention-qv" else "qkv"
    if targets == "fused-qkv":
        if fused is None:
            raise UserError(f"targets: fused-qkv, but {path} has q, k and v apart; type attention-qv or all-linear")
        yield Target(f"{path}.qkv")
        return
    if fused is None:
        yield from (Target(f"{path}.{letter}_proj") for letter in wanted)
        return
    width = fused.out_features // 3
    slices = tuple((i * width, (i + 1) * width) for i, letter in enumerate("qkv") if letter in wanted)
    yield Target(f"{path}.qkv", slices)


def _linears(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if isinstance(child, nn.Linear)]


def _switches(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """BEiT, EVA and SwinV2 hand qkv's weight to F.linear unless the bias is added separately."""
    return tuple(
        (f"{path}.attn", "qkv_bias_separate")
        for path, block in _blocks(model)
        if hasattr(block.attn, "qkv_bias_separate")
    )


def _head(model: nn.Module) -> tuple[str, ...]:
    classifier = (model.pretrained_cfg or {}).get("classifier") or "head"
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)
