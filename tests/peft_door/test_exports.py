"""Every method whose increments are products of two matrices becomes a plain LoRA of stock peft, exactly."""

import json

import pytest
import torch

import capaboost_text
import capaboost_vision
from capaboost_core import UserError, save_peft, trainable_parameters
from capaboost_core.injection import adapted_layers
from tests.peft_door.models import IMAGES, TOKENS, bert, decoder, logits, trained, vit

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")

BASES = {
    "vit": (vit, IMAGES.double(), capaboost_vision.inject),
    "bert": (bert, TOKENS, capaboost_text.inject),
    "gpt2": (lambda: decoder("gpt2"), TOKENS, capaboost_text.inject),
}
METHODS = {
    "tied": dict(method="lora", r=2, num_tied=4, density=0.25),
    "allocated": dict(method="lora-allocated", r=2, max_r=3),
    "AdaLoRA": dict(method="adalora", r=2, init_r=4),
    "rsLoRA": dict(method="rslora", r=4, alpha=3.0),
    "PiSSA": dict(method="pissa", r=4),
    "ProPETL-LoRA": dict(method="propetl-lora", r=4),
    "AdaMix-LoRA": dict(method="adamix-lora", r=4),
}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_of_loras_shape_is_exported_exactly(kind, method, tmp_path):
    if kind == "gpt2" and method["method"] == "adamix-lora":
        pytest.skip("AdaMix-LoRA has no form for Conv1D")
    base, inputs, inject = BASES[kind]
    model = trained(inject(base(), method).double())
    if method["method"] == "adalora":  # its schedule has dropped some ranks, another number in each layer
        for i, layer in enumerate(adapted_layers(model)):
            layer.peft.lora_E["default"].data[: 1 + i % 3] = 0
            layer.peft.ranknum["default"].fill_(3 - i % 3)
    save_peft(model, tmp_path)
    stock = peft.PeftModel.from_pretrained(base().double(), tmp_path, autocast_adapter_dtype=False).eval()
    found, expected = logits(stock, inputs), logits(model, inputs)
    assert type(stock.peft_config["default"]) is peft.LoraConfig
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    assert (found - logits(base().double(), inputs)).abs().max() > 1e-3 * expected.abs().max()
    assert trainable_parameters(model)


def test_the_ranks_that_adalora_dropped_are_not_written(tmp_path):
    model = trained(capaboost_vision.inject(vit(), METHODS["AdaLoRA"]))
    first, second = (layer.peft.lora_E["default"].data for layer in adapted_layers(model))
    first[:], second[1:] = 0, 0  # peft's LoRA has a rank of one at least
    first[3] = 1.0
    save_peft(model, tmp_path)
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (record["r"], record["rank_pattern"]) == (1, {})
    first.zero_()
    save_peft(model, tmp_path)
    stock = peft.PeftModel.from_pretrained(vit(), tmp_path).eval()
    assert torch.allclose(stock(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["dora", "vera", "loha", "lokr", "ia3"])
def test_other_methods_are_refused_before_anything_is_written(method, tmp_path):
    model = capaboost_vision.inject(vit(), {"method": method})
    with pytest.raises(UserError, match="is no LoRA, which peft could load"):
        save_peft(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_increments_of_single_precision_stay_close(tmp_path):
    model = trained(capaboost_vision.inject(vit(), METHODS["PiSSA"]))
    save_peft(model, tmp_path)
    stock = peft.PeftModel.from_pretrained(vit(), tmp_path).eval()
    assert torch.allclose(stock(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
