"""Every method on the device: as on the CPU in float32, merged, in low precision, and through its files.

The sizes are tiny, so that what can differ is the order of sums.
"""

import pytest
import torch

from capaboost_core import UserError, load_adapter, merge, save_adapter, trainable_parameters, unmerge
from capaboost_core.injection import adapted_layers
from tests.compatibility.models import base, drawn
from tests.methods.cases import each_case, trained

NEAR = {"atol": 1e-4, "rtol": 1e-3}


def logits(model, kind: str) -> torch.Tensor:
    """On the model's device."""
    where = next(model.parameters()).device
    if kind == "bert":
        return model(input_ids=torch.tensor([[1, 7, 9, 4, 2], [1, 11, 3, 8, 2]], device=where)).logits
    return model(drawn("images", (2, 3, 32, 32), 1.0).to(where))


def values(model, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return logits(model, kind).float().cpu()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.float().cpu() for name, p in trainable_parameters(model).items()}


@each_case
def test_a_step_is_the_cpus(preset, kind, device):
    here, there = trained(preset, kind), trained(preset, kind).to(device)
    for model in (here, there):
        logits(model, kind).square().sum().backward()
    torch.testing.assert_close(values(there, kind), values(here, kind), **NEAR)
    on_cpu = gradients(here)
    for name, gradient in gradients(there).items():
        size = on_cpu[name].abs().max().item()
        torch.testing.assert_close(
            gradient, on_cpu[name], atol=1e-3 * size + 1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_is_near_float32(preset, kind, dtype, device):
    model = trained(preset, kind).to(device)
    full = values(model, kind)
    with torch.autocast(device.type, dtype):
        low = logits(model, kind)
    low.float().square().sum().backward()
    assert (low.detach().float().cpu() - full).abs().max() < 0.1 * full.abs().max().clamp_min(1.0)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@each_case
def test_merged_it_computes_the_same_and_comes_out_bit_for_bit(preset, kind, device):
    model = trained(preset, kind).to(device)
    before = values(model, kind)
    if not all(layer.mergeable for layer in adapted_layers(model)):
        with pytest.raises(UserError, match="cannot be merged"):
            merge(model)
        return
    torch.testing.assert_close(values(merge(model), kind), before, **NEAR)
    assert torch.equal(values(unmerge(model), kind), before)


@each_case
def test_what_was_saved_there_is_loaded_here_and_back(preset, kind, device, tmp_path):
    model = trained(preset, kind).to(device)
    save_adapter(model, tmp_path)
    on_cpu = load_adapter(base(kind), tmp_path).eval()
    back = load_adapter(base(kind).to(device), tmp_path).eval()
    for name, parameter in trainable_parameters(model).items():
        assert torch.equal(trainable_parameters(on_cpu)[name], parameter.cpu()), name
        assert torch.equal(trainable_parameters(back)[name], parameter), name
    assert torch.equal(values(back, kind), values(model, kind))
    torch.testing.assert_close(values(on_cpu, kind), values(model, kind), **NEAR)


def test_a_captured_step_computes_what_an_eager_one_does(device):
    """A CUDA graph refuses operators for which the host has to wait."""
    if device.type != "cuda":
        pytest.skip("graphs need CUDA")
    model = trained("capaboost-lora", "vit").to(device)
    images = drawn("images", (2, 3, 32, 32), 1.0).to(device)
    model(images).square().sum().backward()
    eager = gradients(model)
    model.zero_grad(set_to_none=True)
    graphed = torch.cuda.make_graphed_callables(model, (images,))
    graphed(images).square().sum().backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, eager[name], **NEAR), name
