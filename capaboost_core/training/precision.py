"""The precision of a run's products, where its settings leave that open."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

LAUNCHER = "ACCELERATE_MIXED_PRECISION"  # `accelerate launch` sets it to `no` if it was told nothing
NATIVE = ("amx_bf16", "avx512_bf16")


def choose_precision(setting: str) -> str:
    """What `auto` means here; any other setting is itself.

    bf16 or fp16 where the launcher was told so; else bf16 where the device multiplies it natively; else `no`: an
    emulated bfloat16 is many times slower than float32.
    """
    if setting != "auto":
        return setting
    told = os.environ.get(LAUNCHER, "no")
    if told != "no":
        return told
    # The first state is the one that the accelerator takes over: it links the processes, on CPUs only if told so.
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    return "bf16" if has_native_bf16(device) else "no"


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16: NVIDIA's from Ampere on, AMX, AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of torch
    return any(capabilities.get(name, False) for name in NATIVE)


def described(precision: str, device: torch.device) -> str:
    """One line for the log."""
    if precision != "no":
        return f"precision: {precision} products, float32 weights"
    native = has_native_bf16(device)
    return "precision: float32" + ("" if native else f"; this {device.type} has no native bf16")
