"""Stock peft loads what `save_peft` wrote, and `load_peft` goes on from what peft wrote."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import capaboost_text
import capaboost_vision
from capaboost_core import UserError, load_adapter, load_peft, merge, save_adapter, save_peft, trainable_parameters

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")
PROGRAM = Path(__file__).parent / "peft_only.py"
SEEDED = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 3, 32, 32, generator=SEEDED)
TOKENS = torch.randint(0, 50, (2, 7), generator=SEEDED)
INJECT = {"vit": capaboost_vision.inject, "bert": capaboost_text.inject, "gpt2": capaboost_text.inject}
PEFT_TARGETS = {
    "vit": (["qkv", "fc1"], ["head"]),
    "bert": (["query", "value"], ["classifier"]),
    "gpt2": (["c_attn", "c_fc"], ["score"]),  # Conv1D, whose weight is (in, out)
}
LORAS = {
    "d2": dict(r=4),
    "d4": dict(r=4, num_tied=4, density=0.25, alpha=16),
    "plain": dict(r=4, num_tied=1, density=1.0),
    "2:4": dict(r=4, mask="nm", n=2, m=4),
    "dropout masks": dict(r=4, mask="dropout"),
    "six matrices": dict(r=4, targets="all-linear"),
}


def base(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "vit":
        sizes = dict(img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3)
        return timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    if kind == "gpt2":
        sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=50, pad_token_id=0)
        return GPT2ForSequenceClassification(GPT2Config(num_labels=3, **sizes)).eval()
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes)).eval()


@torch.no_grad()
def logits(kind: str, model: nn.Module) -> torch.Tensor:
    return model(IMAGES) if kind == "vit" else model(TOKENS).logits


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest logit: sums in another order differ in the last digits of single precision."""
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max())


def trained(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("kind", INJECT)
@pytest.mark.parametrize("lora", LORAS)
def test_peft_computes_what_the_model_computes(tmp_path, kind, lora):
    model = trained(INJECT[kind](base(kind), LORAS[lora]))
    save_peft(model, tmp_path)
    with warnings.catch_warnings():  # peft warns where fan_in_fan_out is not as the layers need it
        warnings.filterwarnings("error", message=".*fan_in_fan_out")
        loaded = peft.PeftModel.from_pretrained(base(kind), tmp_path).eval()
    assert (logits(kind, model) - logits(kind, base(kind))).abs().max() > 0.1
    assert_equal(logits(kind, loaded), logits(kind, model))
    assert_equal(logits(kind, loaded.merge_and_unload()), logits(kind, model))


def test_a_merged_model_writes_the_same_files(tmp_path):
    model = trained(INJECT["vit"](base("vit"), LORAS["d2"]))
    save_peft(model, tmp_path / "unmerged")
    save_peft(merge(model), tmp_path / "merged")
    for path in (tmp_path / "unmerged").iterdir():
        assert path.read_bytes() == (tmp_path / "merged" / path.name).read_bytes()


FULL_SIZE = {
    "vit": (
        lambda: timm.create_model("vit_base_patch16_224", num_classes=5),
        lambda: {"x": torch.randn(2, 3, 224, 224)},
        capaboost_vision.inject,
    ),
    "roberta": (
        lambda: RobertaForSequenceClassification(
            RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=5)
        ),
        lambda: {"input_ids": torch.randint(3, 50265, (2, 16))},
        capaboost_text.inject,
    ),
}


@pytest.mark.parametrize("kind", ["vit", pytest.param("roberta", marks=pytest.mark.long)])
def test_a_program_without_this_package_gives_the_same_logits(tmp_path, kind):
    """ViT-B/16 and RoBERTa-base at full size, as a user of peft alone would load them."""
    build, inputs_of, inject = FULL_SIZE[kind]
    torch.manual_seed(0)
    model, inputs = build().eval(), inputs_of()
    trained(inject(model, "capaboost-lora"))
    save_peft(model, tmp_path)
    with torch.no_grad():
        expected = model(**inputs)
    command = [sys.executable, str(PROGRAM), kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["ours"]
    expected = getattr(expected, "logits", expected)
    assert_equal(torch.tensor(told["logits"]), expected)


def peft_lora(kind: str, folder: Path, **changes) -> nn.Module:
    """A LoRA made, trained and saved by peft."""
    targets, head = PEFT_TARGETS[kind]
    settings = dict(r=4, lora_alpha=6, target_modules=targets, modules_to_save=head) | changes
    model = trained_peft(peft.get_peft_model(base(kind), peft.LoraConfig(**settings)))
    model.save_pretrained(folder)
    return model


def trained_peft(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("kind", INJECT)
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}], ids=["alpha / r", "alpha / sqrt(r)"])
def test_a_lora_of_peft_goes_on_here(tmp_path, kind, changes):
    theirs = peft_lora(kind, tmp_path, **changes)
    ours = load_peft(base(kind), tmp_path).eval()
    assert_equal(logits(kind, ours), logits(kind, theirs))
    trainable = {name for name in trainable_parameters(ours) if "lora" not in name}
    (head,) = PEFT_TARGETS[kind][1]
    assert trainable == {f"{head}.weight"} | (set() if kind == "gpt2" else {f"{head}.bias"})
    save_peft(ours, tmp_path / "again")
    back = peft.PeftModel.from_pretrained(base(kind), tmp_path / "again").eval()
    assert_equal(logits(kind, back), logits(kind, theirs))


def without_b(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "lora_B" not in k}, folder / "adapter_model.safetensors")


WRONG = {
    "several ranks": (dict(rank_pattern={"fc1": 2}), None, "several ranks"),
    "DoRA": (dict(use_dora=True), None, "use_dora makes it no plain LoRA"),
    "weights cut off": ({}, lambda f: (f / "adapter_model.safetensors").write_bytes(b"12"), "no readable"),
    "no weights": ({}, lambda f: (f / "adapter_model.safetensors").unlink(), "no readable"),
    "no config": ({}, lambda f: (f / "adapter_config.json").unlink(), "no readable"),
    "another method": ({}, lambda f: (f / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "no LoRA"),
    "no B": ({}, without_b, "no lora_B of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_loaded_leaves_the_model_as_it_was(tmp_path, case):
    changes, damage, hint = WRONG[case]
    peft_lora("vit", tmp_path, **changes)
    if damage:
        damage(tmp_path)
    model = base("vit")
    with pytest.raises(UserError, match=hint) as caught:
        load_peft(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits("vit", model), logits("vit", base("vit")))
    assert not hasattr(model, "capaboost")


@pytest.mark.parametrize("method", ["padapter", "prefix", "linear"])
def test_only_loras_are_written(tmp_path, method):
    with pytest.raises(UserError, match="no LoRA"):
        save_peft(capaboost_vision.inject(base("vit"), dict(method=method)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_reads_past_its_layers_is_refused(tmp_path):
    model = timm.create_model("beit_base_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    with pytest.raises(UserError, match="without calling peft's layers"):
        save_peft(capaboost_vision.inject(model, dict(r=4)), tmp_path)


def test_our_files_and_peft_s_can_lie_in_one_folder(tmp_path):
    """Neither library takes the other's for its own, alone or together; each gives one line."""
    model = trained(capaboost_vision.inject(base("vit"), {"r": 4}))
    expected = model(IMAGES)
    save_adapter(model, tmp_path / "ours")
    save_peft(model, tmp_path / "peft")
    with pytest.raises(UserError, match=r"holds an adapter of peft; call load_peft\(model, folder\)"):
        load_adapter(base("vit"), tmp_path / "peft")
    with pytest.raises(UserError, match=r"holds an adapter of save_adapter; call load_adapter\(model, folder\)"):
        load_peft(base("vit"), tmp_path / "ours")
    for save in (save_adapter, save_peft, save_adapter):
        save(model, tmp_path / "both")
    assert len(list((tmp_path / "both").iterdir())) == 4
    for load in (load_adapter, load_peft):
        torch.testing.assert_close(load(base("vit"), tmp_path / "both").eval()(IMAGES), expected)
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config.json' at") as caught:
        peft.PeftModel.from_pretrained(base("vit"), str(tmp_path / "ours"))
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(peft.PeftModel.from_pretrained(base("vit"), str(tmp_path / "both"))(IMAGES), expected)


def test_a_folder_with_the_old_name_loads_and_is_renamed_by_the_next_save(tmp_path):
    model = trained(capaboost_vision.inject(base("vit"), {"r": 4}))
    save_adapter(model, tmp_path)
    (tmp_path / "capaboost_config.json").rename(tmp_path / "adapter_config.json")
    loaded = load_adapter(base("vit"), tmp_path)
    torch.testing.assert_close(loaded.eval()(IMAGES), model(IMAGES))
    save_adapter(loaded, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.safetensors", "capaboost_config.json"}
    load_adapter(base("vit"), tmp_path)
