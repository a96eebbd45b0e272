"""Quantized bases behind peft's door: torchao's int8 weights on the CPU, bitsandbytes' 8 and 4 bits on a GPU."""

import re
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from capaboost_core import UserError
from tests.peft_door.models import TOKENS, decoder, logits, trained

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")

from peft import PeftModel, get_peft_model  # noqa: E402

from capaboost_peft import CapaBoostConfig, save_lora  # noqa: E402
from capaboost_peft.quantized import RoundedMergeWarning  # noqa: E402

TARGETS = dict(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def torchao():
    pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(quant_type=Int8WeightOnlyConfig())


def bitsandbytes(**settings):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    if not torch.cuda.is_available():
        pytest.skip("bitsandbytes needs a GPU")
    return BitsAndBytesConfig(**settings)


SCHEMES = {
    "torchao": torchao,
    "8 bit": lambda: bitsandbytes(load_in_8bit=True),
    "4 bit": lambda: bitsandbytes(load_in_4bit=True),
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.fixture
def base(scheme, tmp_path):
    """Makes a quantized base, always of the same weights."""
    settings = SCHEMES[scheme]()
    trained(decoder("llama"), seed=4, part="weight").save_pretrained(tmp_path / "base")
    where = {"": "cpu" if scheme == "torchao" else "cuda"}
    return lambda: AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=settings, dtype=torch.float32, device_map=where
    ).eval()


def output(model, **more):
    return logits(model, TOKENS.to(model.device), **more).detach()


@every_scheme
def test_it_trains_saves_and_loads_to_the_bit(base, tmp_path):
    model = trained(get_peft_model(base(), CapaBoostConfig(r=4, slices={"q_proj": [[0, 8]]}, **TARGETS)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    inputs, losses = TOKENS.to(model.device), []
    for _ in range(4):
        loss = model(input_ids=inputs, labels=inputs).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    with model.disable_adapter():
        assert torch.equal(output(model), output(base()))
    model.save_pretrained(tmp_path / "adapter")
    save_lora(model, tmp_path / "lora")
    assert torch.equal(output(PeftModel.from_pretrained(base(), tmp_path / "adapter")), output(model))
    assert torch.allclose(output(PeftModel.from_pretrained(base(), tmp_path / "lora")), output(model), atol=1e-5)


@every_scheme
def test_adapters_in_one_batch_equal_separate_passes(base):
    model = get_peft_model(base(), CapaBoostConfig(r=4, **TARGETS), "a")
    model.add_adapter("b", CapaBoostConfig(r=2, num_tied=4, density=0.25, **TARGETS))
    trained(model, part="lora_")
    names = ["a", "b"] * 4
    together = output(model, adapter_names=names)
    for name in "ab":
        model.set_adapter(name)
        rows = [i for i, other in enumerate(names) if other == name]
        assert torch.allclose(together[rows], output(model)[rows], atol=1e-5)


@every_scheme
def test_merging_says_what_rounding_costs(base):
    model = trained(get_peft_model(base(), CapaBoostConfig(r=4, **TARGETS)))
    layers = [module for module in model.modules() if hasattr(module, "rounding")]
    assert len(layers) == 4
    inputs = torch.eye(16, device=model.device)
    with torch.no_grad():
        expected = [layer(inputs) - layer.base_layer(inputs) for layer in layers]
        before = [layer.base_layer(inputs) for layer in layers]
    bases = [layer.base_layer for layer in layers]
    with pytest.warns(RoundedMergeWarning) as told:
        model.merge_and_unload()
    with torch.no_grad():
        added = [layer(inputs) - old for layer, old in zip(bases, before, strict=True)]
    worst = max((new - old).norm() / old.norm() for new, old in zip(added, expected, strict=True))
    (message,) = [str(warning.message) for warning in told if warning.category is RoundedMergeWarning]
    assert float(re.search(r"up to ([\d.]+)%", message)[1]) == pytest.approx(100 * worst.item(), rel=0.05, abs=0.02)
    assert worst > 1e-4


def test_weights_that_cannot_be_quantized_again_are_refused_before_any_is_merged():
    pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = decoder("llama")
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, path: path.endswith("v_proj"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, that this cannot be merged
        model = trained(get_peft_model(model, CapaBoostConfig(r=4, **TARGETS)))
    before = output(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match=r"v_proj cannot be quantized again after merging; load"):
            merge()
    assert torch.equal(output(model), before)
    assert not any(getattr(module, "merged", False) for module in model.modules())
