"""Which settings mean something to which method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MASKS = ("num_tied", "density", "mask", "n", "m", "seed")
ADAPTER = ("r", *MASKS, "alpha", "dropout", "init", "targets")
METHOD_SETTINGS = {
    "lora": ADAPTER,
    "padapter": (*ADAPTER, "activation"),
    "hadapter": (*ADAPTER, "activation", "after_dropout"),
    "prefix": ("r", *MASKS),  # no increment to scale, no input to drop, one way to start
    "linear": (),
    "full": (),
}
TARGET_WORDS = (
    "attention-qv",
    "fused-qkv",
    "all-linear",
)  # LoRA's; adapters have places of their own, or take suffixes
UNTIED = {"num_tied": 1, "density": 1.0}  # true of a method without modules, and held by configurations of it


def used_settings(values: Mapping[str, Any]) -> set[str]:
    """The settings that mean something beside the given ones, `method` included.

    Without masks that are drawn once there is nothing to seed, n and m belong to one kind of mask, and the
    words for targets to LoRA. (With several modules, density 1 is the end of a scale, not another method.)

    Args:
        values: Settings by name; what is missing has its default.
    """
    method = values.get("method", "lora")
    used = {"method", *(METHOD_SETTINGS.get(method, ADAPTER) if isinstance(method, str) else ADAPTER)}
    mask = values.get("mask", "random")
    if mask == "dropout":
        used -= {"seed"}
    if mask != "nm":
        used -= {"n", "m"}
        used -= {"mask", "seed"} if all(values.get(name) == plain for name, plain in UNTIED.items()) else set()
    if method != "lora" and values.get("targets") in TARGET_WORDS:
        used -= {"targets"}
    return used
