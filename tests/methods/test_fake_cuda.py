"""Every method on CUDA as far as that goes without a GPU: devices, types, and that no step makes the host wait."""

import pytest
import torch

from benchmarks.fake_cuda import autocast, backward, fake_cuda
from capaboost_core import disable, merge, trainable_parameters
from capaboost_core.injection import adapted_layers
from tests.compatibility.models import base
from tests.fake_cuda import CUDA, OnDevice
from tests.methods.cases import CASES, adapted, each_case, put_in, settings

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
OFTEN = {("vit", "bf16"), ("bert", "fp16")}  # both types, and every method; the rest is for `make test-all`
TYPED = [
    pytest.param(*case, dtype, id="-".join([*case, name]), marks=() if (case[1], name) in OFTEN else pytest.mark.long)
    for case in CASES
    for name, dtype in TYPES.items()
]


def inputs(kind: str, device) -> dict[str, torch.Tensor]:
    if kind == "vit":
        return {"x": torch.zeros(2, 3, 32, 32, device=device)}
    ids = torch.full((2, 5), 2, device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def out(model, kind: str, device) -> torch.Tensor:
    logits = model(**inputs(kind, device))
    return getattr(logits, "logits", logits)


def of_type(model, kind: str, dtype: torch.dtype, device: str) -> torch.dtype:
    with torch.autocast(device, dtype):
        return out(model, kind, device).dtype


@pytest.mark.parametrize(("preset", "kind", "dtype"), TYPED)
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(preset, kind, dtype):
    on_cpu = of_type(adapted(preset, kind, dropout=0.5).train(), kind, dtype, "cpu")
    model = adapted(preset, kind, dropout=0.5).train()
    with fake_cuda():
        model, made = model.to("cuda"), inputs(kind, "cuda")
        with OnDevice(), autocast(dtype):
            logits = model(**made)
            logits = getattr(logits, "logits", logits)
        with OnDevice():
            backward(logits.float().sum())
    assert (logits.device, logits.dtype) == (CUDA, on_cpu)
    for name, parameter in trainable_parameters(model).items():
        assert parameter.grad is not None, name
        for tensor in (parameter, parameter.grad):
            assert (tensor.device, tensor.dtype, tensor.shape) == (CUDA, torch.float32, parameter.shape), name


@each_case
def test_evaluation_stays_on_the_gpu_adapted_merged_and_as_the_base(preset, kind):
    model = adapted(preset, kind)
    with fake_cuda(), torch.no_grad():
        model, made = model.to("cuda"), inputs(kind, "cuda")
        with OnDevice(), autocast(torch.bfloat16):
            model(**made)
            with disable(model):
                model(**made)
        if all(layer.mergeable for layer in adapted_layers(model)):
            merge(model)
            with OnDevice(), autocast(torch.bfloat16):
                model(**made)
    assert {t.device for t in [*model.parameters(), *model.buffers()]} == {CUDA}


@each_case
def test_it_is_put_into_a_model_that_is_on_the_gpu(preset, kind):
    # Loading an adapter goes this way too; what it checks first are values, which no fake tensor has.
    model = base(kind)
    with fake_cuda():
        model = put_in(model.to("cuda"), settings(preset))
        with OnDevice(), torch.no_grad():
            assert out(model, kind, "cuda").device == CUDA
    own = {name: p.device for name, p in trainable_parameters(model).items()}
    assert set(own.values()) == {CUDA}
