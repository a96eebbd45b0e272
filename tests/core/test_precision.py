"""What precision `auto` is, on which device and under which launcher."""

import pytest
import torch

from capaboost.training.optimize import LAUNCHER, choose_precision, described, has_native_bf16, make_accelerator
from capaboost.training.settings import TrainSection

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def claim_instructions(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)


@pytest.mark.parametrize(
    ("instructions", "native"),
    [((), False), (("avx2", "avx512_f"), False), (("amx_tile", "amx_bf16"), True), (("avx512_bf16",), True)],
)
def test_a_cpu_with_products_of_bfloat16_is_known(monkeypatch, instructions, native):
    claim_instructions(monkeypatch, *instructions)
    assert has_native_bf16(CPU) == native


def test_an_emulated_bfloat16_on_a_gpu_is_not_native(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_native_bf16(CUDA)


@pytest.mark.parametrize("instructions", [(), ("amx_bf16",)])
@pytest.mark.parametrize("setting", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("launcher", [None, "no", "bf16"])
def test_a_setting_is_itself_whatever_the_device_and_the_launcher_say(monkeypatch, instructions, setting, launcher):
    claim_instructions(monkeypatch, *instructions)
    monkeypatch.delenv(LAUNCHER, raising=False) if launcher is None else monkeypatch.setenv(LAUNCHER, launcher)
    assert choose_precision(setting) == setting


@pytest.mark.parametrize(
    ("launcher", "instructions", "chosen"),
    [
        (None, (), "no"),
        (None, ("amx_bf16",), "bf16"),
        ("no", ("amx_bf16",), "bf16"),  # which accelerate launch says if it was told nothing
        ("fp16", ("amx_bf16",), "fp16"),
        ("bf16", (), "bf16"),
    ],
)
def test_auto_is_the_launchers_choice_or_what_the_device_does_natively(monkeypatch, launcher, instructions, chosen):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    claim_instructions(monkeypatch, *instructions)
    monkeypatch.delenv(LAUNCHER, raising=False) if launcher is None else monkeypatch.setenv(LAUNCHER, launcher)
    assert choose_precision("auto") == chosen


def test_the_log_says_why_it_is_float32(monkeypatch):
    claim_instructions(monkeypatch)
    assert described("no", CPU) == "precision: float32; this cpu has no native bf16"
    claim_instructions(monkeypatch, "amx_bf16")
    assert described("no", CPU) == "precision: float32"
    assert described("bf16", CPU) == "precision: bf16 products, float32 weights"


def test_runs_of_one_process_may_have_different_precisions(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv(LAUNCHER, raising=False)
    found = [
        make_accelerator(TrainSection(mixed_precision=setting), tmp_path).mixed_precision
        for setting in ("no", "bf16", "no")
    ]
    assert found == ["no", "bf16", "no"]
