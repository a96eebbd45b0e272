"""Every exporter of an unmerged or merged model writes what the model computes, for any batch."""

import io

import pytest
import torch

from capaboost_core import disable, merge
from capaboost_core.methods.noah import parts_of, pass_on
from capaboost_core.methods.vpt import PromptedBlock
from tests.core.fast_path_case import IN, adapted
from tests.core.fast_path_case import batch as make_batch
from tests.methods.cases import trained

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)

SETTINGS = [{}, {"num_tied": 1, "density": 1.0}, {"num_tied": 4}, {"mask": "dropout"}, {"dropout": 0.3}]
OTHER = torch.randn(3, 5, IN, generator=torch.Generator().manual_seed(3))


def batch():
    return make_batch(torch.float32)


def onnx_export(model, sample=None):
    onnxruntime = pytest.importorskip("onnxruntime")
    file, dynamic = io.BytesIO(), {"x": {0: "batch"}}
    torch.onnx.export(
        model, (batch() if sample is None else sample,), file, dynamo=False, input_names=["x"], dynamic_axes=dynamic
    )
    session = onnxruntime.InferenceSession(file.getvalue())
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def counted_in_trace(model, sample=None):
    return torch.jit.trace(model, (batch() if sample is None else sample,))


def exported(model, sample=None):
    dynamic = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (batch() if sample is None else sample,), dynamic_shapes=dynamic).module()


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)


@pytest.mark.hard_case(16, "messages")
@pytest.mark.parametrize("export", [onnx_export, counted_in_trace, exported, compiled])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_exported_computes_as_the_model_does(settings, export):
    model = adapted(dtype=torch.float32, **settings).eval()
    with torch.no_grad(), disable(model):
        base = model(OTHER)
    for state in (model, merge):
        model = model if state is model else merge(model)
        with torch.no_grad():
            expected = model(OTHER)
            torch.testing.assert_close(export(model)(OTHER), expected, rtol=1e-4, atol=1e-5)
        assert (expected - base).abs().max() > 1e-2


@pytest.mark.hard_case(16)
@pytest.mark.parametrize("training", [True, False])
def test_a_traced_model_can_still_be_trained(training):
    model = adapted(dtype=torch.float32).train(training)
    twin = counted_in_trace(model)
    model(OTHER).square().sum().backward()
    expected = model.qkv.lora_A.packed.grad.clone()
    model.zero_grad()
    twin(OTHER).square().sum().backward()
    torch.testing.assert_close(model.qkv.lora_A.packed.grad, expected, rtol=1e-4, atol=1e-5)


PROMPTS = ("vpt-deep", "vpt-shallow", "capaboost-vpt-deep", "noah", "noah-supernet")


@pytest.mark.parametrize("export", [onnx_export, counted_in_trace, exported])
@pytest.mark.parametrize("preset", PROMPTS)
def test_prompts_are_exported_for_any_batch(preset, export):
    model = trained(preset, "vit").eval()
    if preset.startswith("noah"):  # a subnet in which the first part of each kind is left out
        for parts in parts_of(model):
            parts[0].width = 0
        pass_on([module for module in model.modules() if isinstance(module, PromptedBlock)])
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(export(model, images[:2])(images), model(images), rtol=1e-4, atol=1e-5)
