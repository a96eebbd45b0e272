"""A small model of every timm family that can be adapted, and images for it."""

import timm
import torch
from torch import nn

import capaboost_vision  # noqa: F401  registers the argument `capaboost`

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 5}
FAMILIES = {
    "vit_tiny_patch16_224": {"img_size": 32},
    "deit_tiny_distilled_patch16_224": {"img_size": 32},
    "deit3_small_patch16_224": {"img_size": 32},
    "vit_base_patch16_clip_224": {"img_size": 32},
    "vit_base_patch16_siglip_224": {"img_size": 32},
    "vit_small_patch14_dinov2": {"img_size": 28},
    "vit_giant_patch14_dinov2": {"img_size": 28},
    "vit_small_patch16_dinov3": {"img_size": 32},
    "vit_small_patch16_dinov3_qkvb": {"img_size": 32},
    "vit_small_plus_patch16_dinov3": {"img_size": 32},
    "beit_base_patch16_224": {"img_size": 32},
    "beitv2_base_patch16_224": {"img_size": 32},
    "eva_large_patch14_196": {"img_size": 28},
    "eva02_tiny_patch14_224": {"img_size": 28},
    "eva02_base_patch14_224": {"img_size": 28},
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "capaboost_vit_micro_patch8_64": {"img_size": 32},
}


def create(name, capaboost=None):
    torch.manual_seed(0)
    model = timm.create_model(name, capaboost=capaboost, **(SMALL if "swin" not in name else {}) | FAMILIES[name])
    for name, parameter in model.named_parameters():  # zero or tiny scales at the start would hide every change
        if parameter.ndim == 1 and name.split(".")[-1] in ("weight", "gamma", "gamma_1", "gamma_2"):
            nn.init.ones_(parameter)
        elif "lora_" not in name and "adapter." not in name and "logit" not in name:
            nn.init.normal_(parameter, std=0.15)
    return model.eval()


def image(model):
    torch.manual_seed(1)
    return torch.randn(2, 3, *model.patch_embed.img_size)
