"""timm's other ways to name, wrap and export a model, with an adapter: they work, or one line says what to do."""

import pytest
import timm
import torch
from timm.models import PretrainedCfg
from timm.models._hub import save_for_hf
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from timm.utils.onnx import onnx_export
from torch import nn

from capaboost.runs.settings import VisionModelSection
from capaboost.runs.vtab import create_model
from capaboost_core import (
    PRESETS,
    UserError,
    load_adapter,
    merge,
    parameter_counts,
    save_adapter,
    set_adapter,
    trainable_parameters,
    unload,
)
from capaboost_vision import inject
from capaboost_vision.backbone import EMBEDDED

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def adapted():
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=5, capaboost="capaboost-lora", **SMALL).eval()
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.hard_case(16)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_onnx_export_of_timm_writes_the_adapted_model(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = adapted(), str(tmp_path / "model.onnx")
    expected = model(X).detach()
    onnx_export(model, file, example_input=X)
    session = onnxruntime.InferenceSession(file)
    (output,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [NAME, EMBEDDED])
def test_features_only_gives_the_features_of_the_adapted_model(name, tmp_path):
    def make(**more):
        torch.manual_seed(0)
        return timm.create_model(name, features_only=True, out_indices=(0, 1), **SMALL, **more).eval()

    base, model = make(), make(capaboost="capaboost-lora")
    assert base.feature_info.channels() == model.feature_info.channels() == [48, 48]
    for ours, theirs in zip(model(X), base(X), strict=True):
        assert torch.equal(ours, theirs)
    assert {key.split("lora_")[1][:1] for key in trainable_parameters(model)} == {"A", "B"}  # there is no head
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter, std=0.3)
    features = model(X)
    assert not any(torch.allclose(ours, theirs) for ours, theirs in zip(features, base(X), strict=True))
    sum(feature.square().sum() for feature in features).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trainable_parameters(model).values())
    save_adapter(model, tmp_path)
    for again in (load_adapter(make(), tmp_path)(X), merge(model)(X), unload(model)(X)):
        for ours, theirs in zip(again, features, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.hard_case(35)
def test_features_that_take_the_model_apart_are_refused_in_a_line():
    with pytest.raises(UserError, match=r"features_only=True makes a FeatureListNet, .* model\.forward_intermediates"):
        timm.create_model("test_resnet", features_only=True, capaboost="linear")
    assert len(adapted().forward_intermediates(X, intermediates_only=True)) == 2


@pytest.mark.parametrize("state", ["adapted", "merged", "unloaded"])
@pytest.mark.parametrize("safe", [True, False, "both"])
def test_timm_saves_an_adapted_model_merged_and_loads_it_alone(state, safe, tmp_path):
    """`save_for_hf` was imported before capaboost_vision; the model itself stays adapted."""
    model = adapted()
    expected = model(X).detach()
    {"adapted": lambda model: model, "merged": merge, "unloaded": unload}[state](model)
    save_for_hf(model, tmp_path, model_args=SMALL, safe_serialization=safe)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    assert hasattr(model, "capaboost") == (state != "unloaded")
    for path in tmp_path.glob("*.bin" if safe is False else "*.safetensors"):
        alone = timm.create_model(NAME, num_classes=5, checkpoint_path=str(path), **SMALL).eval()
        torch.testing.assert_close(alone(X), expected, rtol=1e-4, atol=1e-4)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(again(X), expected, rtol=1e-4, atol=1e-4)


def test_of_several_adapters_timm_saves_the_active_one(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / "other")
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter, std=0.3)
    load_adapter(model, tmp_path / "other", name="other")
    for name in ("default", "other"):
        set_adapter(model, name)
        save_for_hf(model, tmp_path / name, model_args=SMALL, safe_serialization=True)
        again = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        torch.testing.assert_close(again(X), model(X), rtol=1e-4, atol=1e-4)


def test_what_is_pushed_to_the_hub_is_merged(monkeypatch):
    """timm's own upload, with its client replaced by one that reads the folder."""
    model, found = adapted(), {}

    class Client:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})

        def file_exists(self, **_):
            return True

        def upload_folder(self, folder_path, **_):
            found["logits"] = timm.create_model(f"local-dir:{folder_path}", pretrained=True).eval()(X)

    monkeypatch.setattr("timm.models._hub.HfApi", Client)
    timm.models.push_to_hf_hub(model, "user/name", model_args=SMALL)
    torch.testing.assert_close(found["logits"], model(X), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_merged_is_not_saved_for_timm(tmp_path):
    model = timm.create_model(NAME, num_classes=5, capaboost="padapter", **SMALL)
    with pytest.raises(UserError, match=r"timm could not load this model .*; save_adapter\(model, folder\)") as caught:
        save_for_hf(model, tmp_path, model_args=SMALL, safe_serialization="both")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert model.capaboost


@pytest.fixture
def folder(tmp_path):
    base = timm.create_model(NAME, num_classes=5, **SMALL)
    save_for_hf(base, tmp_path / "model", model_args=SMALL)
    return base, tmp_path / "model"


@pytest.mark.hard_case(35)
def test_a_model_from_a_folder_takes_an_adapter(folder, tmp_path):
    base, path = folder
    model = timm.create_model(f"local-dir:{path}", pretrained=True, capaboost="capaboost-lora")
    assert torch.equal(model.eval()(X), base.eval()(X))
    save_adapter(model, tmp_path / "adapter")
    load_adapter(timm.create_model(f"local-dir:{path}", pretrained=True), tmp_path / "adapter")
    section = VisionModelSection(name=f"local-dir:{path}", pretrained=True)
    assert create_model(section, 5, PRESETS["capaboost-lora"]).capaboost.base_model == NAME


@pytest.mark.hard_case(35)
@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("name", ["hf-hub:timm/no-such", "hf_hub:timm/no-such", "local-dir:nowhere", "hub:x/y"])
def test_names_that_cannot_be_had_are_one_line(name, pretrained, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=name.split("/")[0]) as caught:
        create_model(VisionModelSection(name=name, pretrained=pretrained), 5, PRESETS["capaboost-lora"])
    assert "\n" not in str(caught.value)


def test_models_registered_later_take_an_adapter_too():
    @timm.models.register_model
    def lab_vit(pretrained=False, num_classes=5, **kwargs):
        return VisionTransformer(**SIZES | {"num_classes": num_classes})

    @timm.models.register_model
    def lab_vit_of_a_vit(pretrained=False, num_classes=5, **kwargs):
        return timm.create_model("lab_vit", num_classes=num_classes)

    for name in ("lab_vit", "lab_vit_of_a_vit"):
        model = timm.create_model(name, num_classes=3, capaboost="capaboost-lora")
        assert parameter_counts(model).head == 3 * SIZES["embed_dim"] + 3
        assert not hasattr(timm.create_model(name), "capaboost")
    with pytest.raises(UserError, match="unknown preset"):
        timm.create_model("lab_vit", capaboost="capa")


SIZES = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 5}
SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 5}


class Masked(VisionTransformer):
    """A class of one's own, as the authors of MAE have it."""


BY_HAND = {
    "vit": (lambda: VisionTransformer(**SIZES), 5 * 48 + 5),
    "mae": (lambda: Masked(**SIZES), 5 * 48 + 5),
    "distilled": (lambda: VisionTransformerDistilled(**SIZES), 2 * (5 * 48 + 5)),
    "beit": (lambda: Beit(**SIZES), 5 * 48 + 5),
    "eva": (lambda: Eva(**SIZES), 5 * 48 + 5),
    "swin": (lambda: SwinTransformer(**SWIN), 5 * 48 + 5),
    "xcit": (lambda: Xcit(**SIZES | {"cls_attn_layers": 1}), 5 * 48 + 5),
    "cait": (lambda: Cait(**SIZES), 5 * 48 + 5),
    "no classes": (lambda: VisionTransformer(**SIZES | {"num_classes": 0}), 0),
}


@pytest.mark.parametrize("record", ["none", "None", "object"])
@pytest.mark.parametrize(("make", "head"), BY_HAND.values(), ids=BY_HAND)
def test_a_model_made_without_timms_record_takes_an_adapter(make, head, record, tmp_path):
    def base():
        torch.manual_seed(0)
        model = make()
        if record != "none":
            model.pretrained_cfg = PretrainedCfg() if record == "object" else None
        return model

    model = inject(base(), "capaboost-lora")
    assert parameter_counts(model).head == head
    save_adapter(model, tmp_path)
    load_adapter(base(), tmp_path)


@pytest.mark.parametrize("name", ["dora", "pissa", "vera"])
def test_an_adapter_made_before_timms_checkpoint_starts_as_the_base(name, tmp_path):
    pytest.importorskip("peft", reason="the extra [peft] is not installed")
    torch.manual_seed(0)
    base = timm.create_model(NAME, num_classes=5, **SMALL).eval()
    torch.save(base.state_dict(), tmp_path / "base.pth")
    torch.manual_seed(1)
    model = timm.create_model(NAME, num_classes=5, checkpoint_path=tmp_path / "base.pth", capaboost=name, **SMALL)
    torch.testing.assert_close(model.eval()(X), base(X), rtol=1e-4, atol=1e-5)
