"""What stock peft saved goes on here with all that it holds, and is saved again by either door; or it is refused."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import capaboost_text
from capaboost_core import UserError, load_adapter, load_peft, save_adapter, save_peft
from capaboost_core.adapter_files.base_model import DifferentBaseWarning

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")
TOKENS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def bert(cls=BertForSequenceClassification):
    torch.manual_seed(0)
    return cls(BertConfig(num_labels=3, **SMALL)).eval()


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, pad_token_id=0, **SMALL)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=50)).eval()


def theirs(make, folder, **settings):
    """A LoRA made, trained and saved by peft."""
    torch.manual_seed(2)
    saving = settings.pop("saving", {})
    targets = {bert: ["query", "value"], llama: ["q_proj"], gpt2: ["c_attn"]}.get(make, ["query"])
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets} | settings)
    model = peft.get_peft_model(make(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder, **saving)
    return model.eval()


@torch.no_grad()
def assert_computes(found, expected):
    found, expected = found(TOKENS).logits, expected(TOKENS).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


def tokens():
    return bert(BertForTokenClassification)


GOES_ON = {
    "a classifier": (bert, dict(task_type="SEQ_CLS")),
    "a classifier of tokens": (tokens, dict(task_type="TOKEN_CLS")),
    "embeddings": (bert, dict(modules_to_save=["word_embeddings"])),
    "norms of every block": (bert, dict(modules_to_save=["LayerNorm", "classifier"])),
    "the pooler and a classifier": (bert, dict(task_type="SEQ_CLS", modules_to_save=["pooler"])),
    "all biases": (bert, dict(bias="all")),
    "biases of its layers": (bert, dict(bias="lora_only", modules_to_save=["classifier"])),
    "untied embeddings": (llama, dict(modules_to_save=["embed_tokens", "lm_head"])),
    "the last norm": (llama, dict(modules_to_save=["model.norm"])),
    "embeddings saved beside": (llama, dict(saving=dict(save_embedding_layers=True))),
    "gaussian first values": (bert, dict(init_lora_weights="gaussian")),
}


@pytest.mark.parametrize("case", GOES_ON)
def test_all_that_peft_saved_goes_on_and_is_saved_again(tmp_path, case):
    make, settings = GOES_ON[case]
    expected = theirs(make, tmp_path / "peft", **settings)
    ours = load_peft(make(), tmp_path / "peft").eval()
    assert_computes(ours, expected)
    save_adapter(ours, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DifferentBaseWarning)
        assert_computes(load_adapter(make(), tmp_path / "ours").eval(), expected)
    save_peft(ours, tmp_path / "again")
    assert_computes(peft.PeftModel.from_pretrained(make(), tmp_path / "again").eval(), expected)


def test_a_saved_module_within_another_one_goes_on_as_a_part_of_it(tmp_path):
    theirs(bert, tmp_path, task_type="SEQ_CLS", modules_to_save=["pooler"])
    record = json.loads((tmp_path / CONFIG).read_text())
    record["modules_to_save"].append("pooler.dense")
    (tmp_path / CONFIG).write_text(json.dumps(record))
    assert load_peft(bert(), tmp_path).capaboost.plan.head == ("bert.pooler", "classifier")


def test_a_wrapped_base_takes_a_lora_of_peft(tmp_path):
    expected = theirs(bert, tmp_path, task_type="SEQ_CLS")
    wrapped = torch.compile(bert(), backend="eager")
    assert load_peft(wrapped, tmp_path) is wrapped
    assert_computes(wrapped.eval(), expected)


REFUSED = {
    "PiSSA": (bert, dict(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "fast PiSSA": (bert, dict(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4'"),
    "OLoRA": (bert, dict(init_lora_weights="olora"), "init_lora_weights is 'olora'"),
    "aLoRA": (llama, dict(alora_invocation_tokens=[3, 4], task_type="CAUSAL_LM"), "alora_invocation_tokens makes"),
    "token deltas": (llama, dict(trainable_token_indices=[3, 4]), "trainable_token_indices makes"),
    "biases of factors": (bert, dict(lora_bias=True), "lora_bias makes"),
    "embeddings without those tied to them": (gpt2, dict(modules_to_save=["wte"]), "trained apart from lm_head"),
    "the same, to be tied": (gpt2, dict(modules_to_save=["wte"], ensure_weight_tying=True), "apart from lm_head"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_computes_otherwise_is_refused_by_name(tmp_path, case):
    make, settings, hint = REFUSED[case]
    theirs(make, tmp_path, **settings)
    assert_refused(make, tmp_path, hint)


def assert_refused(make, folder, hint):
    model = make()
    before = {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=hint) as caught:
        load_peft(model, folder)
    assert "\n" not in str(caught.value)
    for name, parameter in model.named_parameters():
        identity, trains, values = before[name]
        assert (id(parameter), parameter.requires_grad) == (identity, trains)
        assert torch.equal(parameter, values)
    assert not hasattr(model, "capaboost")


def tensors(change):
    def apply(folder):
        values = load_file(folder / WEIGHTS)
        change(values)
        save_file(values, folder / WEIGHTS)

    return apply


def record(**changes):
    def apply(folder):
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(values | changes))

    return apply


def first(values, ending):
    return next(name for name in sorted(values) if name.endswith(ending))


def another_rank(values):
    name = sorted(name for name in values if name.endswith("lora_B.weight"))[-1]
    values[name] = values[name][:, :2].contiguous()


def not_finite(ending):
    return tensors(lambda values: values[first(values, ending)].flatten()[:1].fill_(float("nan")))


DAMAGED = {
    "B of another rank": (tensors(another_rank), "no linear layer"),
    "A of three dimensions": (
        tensors(lambda v: v.update({first(v, "lora_A.weight"): torch.zeros(4, 16, 1)})),
        "no linear layer",
    ),
    "A without rows": (
        tensors(lambda v: v.update({k: torch.zeros(0, 16) for k in v if k.endswith("lora_A.weight")})),
        "r is 0",
    ),
    "a NaN in A": (not_finite("lora_A.weight"), "not finite"),
    "a NaN in the head": (not_finite("classifier.weight"), "not finite"),
    "a nested record": (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "no readable"),
    "modules_to_save a number": (record(modules_to_save=5), "modules_to_save"),
    "modules_to_save with a number": (record(modules_to_save=[5]), "modules_to_save"),
    "a huge alpha": (record(lora_alpha=10**400), "no readable"),
    "alpha a text": (record(lora_alpha="many"), "lora_alpha|many"),
    "no alpha": (record(lora_alpha=None), "adapter_config"),
    "a setting of the future": (record(use_future=True), "use_future makes it no plain LoRA"),
    "another head": (
        tensors(lambda v: v.update({first(v, "classifier.bias"): torch.zeros(5)})),
        r"classifier.bias of shape \(5,\)",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_one_line_and_changes_nothing(tmp_path, case):
    damage, hint = DAMAGED[case]
    theirs(bert, tmp_path, task_type="SEQ_CLS")
    damage(tmp_path)
    assert_refused(bert, tmp_path, hint)


AUTO = {
    "SequenceClassification": (bert, peft.AutoPeftModelForSequenceClassification, dict(num_labels=3)),
    "TokenClassification": (tokens, peft.AutoPeftModelForTokenClassification, dict(num_labels=3)),
    "CausalLM": (llama, peft.AutoPeftModelForCausalLM, {}),
    "any": (gpt2, peft.AutoPeftModel, {}),
}


@pytest.mark.parametrize("case", AUTO)
def test_peft_finds_the_class_of_the_base_by_itself(tmp_path, case):
    make, auto, settings = AUTO[case]
    base = make()
    base.save_pretrained(tmp_path / "base")
    model = type(base).from_pretrained(tmp_path / "base").eval()
    capaboost_text.inject(model, dict(r=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
    save_peft(model, tmp_path / "adapter")
    assert_computes(auto.from_pretrained(tmp_path / "adapter", **settings).eval(), model)
    again = AutoModelForSequenceClassification if case == "SequenceClassification" else type(base)
    assert_computes(load_peft(again.from_pretrained(tmp_path / "base").eval(), tmp_path / "adapter"), model)
