"""Language models by `from_pretrained` train, generate with a cache, merge, save and load; encoders are refused."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaModel

from capaboost_core import UserError, load_adapter, merge, save_adapter, trainable_parameters
from capaboost_core.injection import adapted_layers
from capaboost_text import from_pretrained, inject
from capaboost_text.encoders import load_language_model
from capaboost_text.roles import roles_of
from tests.peft_door.models import DECODERS, TOKENS, decoder, example, logits, trained

WIDTH = 16
FUSED = {  # rows of q and v, with four heads of width 4 that phi3 shares in two groups
    "phi3": ("self_attn.qkv_proj", ((0, 16), (24, 32))),
    "gpt2": ("attn.c_attn", ((0, 16), (32, 48))),
}
ATTENTIONS = {"t5": 6, "bart": 3}  # two blocks on each side and the cross attention; one block each
every_family = pytest.mark.parametrize("family", DECODERS)


def task_of(family: str) -> str:
    return "seq2seq-lm" if family in ATTENTIONS else "causal-lm"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved base models by family."""
    place = tmp_path_factory.mktemp("language models")
    for family in DECODERS:
        decoder(family).save_pretrained(place / family)
    return place


@every_family
def test_it_trains_generates_merges_saves_and_loads(family, folders, tmp_path):
    model = from_pretrained(folders / family, task_of(family), {"method": "lora", "r": 4, "alpha": 8.0})
    base = decoder(family)
    torch.testing.assert_close(logits(model.eval(), TOKENS), logits(base, TOKENS))
    assert set(trainable_parameters(model)) == {n for n, p in model.named_parameters() if n.endswith(".packed")}
    first = {n: p.detach().clone() for n, p in trainable_parameters(model).items()}
    losses = train(model)
    assert losses[-1] < losses[0]
    assert all((p != first[n]).any() for n, p in trainable_parameters(model).items())
    state = model.state_dict()
    assert all(
        torch.equal(value, state[name]) for name, value in base.state_dict().items()
    )  # with lm_head, tied or not
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (base.get_output_embeddings().weight is base.get_input_embeddings().weight)
    trained(model)
    save_adapter(model, tmp_path / "adapter")
    expected = logits(model, TOKENS)
    assert (expected - logits(base, TOKENS)).abs().max() > 1e-3
    cached, uncached = (generated(model, use_cache) for use_cache in (True, False))
    assert torch.equal(cached, uncached)
    loaded = load_adapter(load_language_model(folders / family, task_of(family)), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, TOKENS), expected)
    merge(model)
    torch.testing.assert_close(logits(model, TOKENS), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(generated(model, True), cached)


def train(model: nn.Module) -> list[float]:
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model.train()(input_ids=TOKENS, labels=TOKENS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def generated(model: nn.Module, use_cache: bool) -> torch.Tensor:
    return model.eval().generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False, use_cache=use_cache)


@every_family
def test_q_and_v_alone_are_adapted(family):
    layers = adapted_layers(inject(decoder(family), {"method": "lora", "r": 4}))
    if family in FUSED:
        suffix, rows = FUSED[family]
        assert [(layer.path.endswith(suffix), tuple(layer.slices)) for layer in layers] == [(True, rows)] * 2
        return
    names = [layer.path.rpartition(".")[2][0] for layer in layers]
    assert names == ["q", "v"] * (len(names) // 2) or sorted(names) == sorted("qv" * ATTENTIONS[family])
    assert len(names) == 2 * ATTENTIONS.get(family, 2)


def test_an_encoder_decoder_has_every_matrix_of_its_blocks():
    for family in ATTENTIONS:
        base = decoder(family)
        linears = {path for path, module in base.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
        adapted = inject(base, {"method": "lora", "r": 4, "targets": "all-linear"})
        assert {layer.path for layer in adapted_layers(adapted)} == linears
        assert len(roles_of(base).blocks) == (4 if family == "t5" else 2)


@pytest.mark.parametrize("config", [{"method": "lora", "targets": "all-linear"}, "padapter", "hadapter", "ia3"])
def test_experts_that_are_no_layers_are_refused(config):
    model = decoder("mixtral")
    before = [type(module) for module in model.modules()]
    with pytest.raises(UserError, match=r"all experts in one tensor, not in layers.*choose targets=attention-qv"):
        inject(model, config)
    assert [type(module) for module in model.modules()] == before


def test_what_is_no_language_model_of_the_kind_is_refused(folders, tmp_path):
    BertForMaskedLM(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "bert")
    LlamaModel(LlamaConfig(**DECODERS["llama"])).save_pretrained(tmp_path / "headless")
    for place, task, message in [
        (tmp_path / "bert", "causal-lm", "is a bert whose tokens attend to later ones; give a decoder"),
        (folders / "t5", "causal-lm", "is of an architecture without a model for causal-lm"),
        (folders / "llama", "seq2seq-lm", "is of an architecture without a model for seq2seq-lm"),
        (tmp_path / "headless", "causal-lm", "lacks 1 of the weights .* such as lm_head.weight"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            from_pretrained(place, task)
        assert "\n" not in str(caught.value)


def test_the_example_lowers_perplexity_and_leaves_an_adapter(tmp_path, capsys):
    before, after = example("causal_lm").main(["--output", str(tmp_path / "adapter"), "--lr", "0.01"])
    assert after < 0.8 * before
    assert (tmp_path / "adapter" / "adapter.safetensors").is_file()
    assert f"perplexity {before:.2f} before, {after:.2f} after" in capsys.readouterr().out
