"""Every encoder with the attention interface against attention written out; padding, local windows, refusals."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForSequenceClassification,
    BertConfig,
    ModernBertConfig,
    XLMRobertaConfig,
)
from transformers.masking_utils import flash_attention_mask

from capaboost_core import (
    CapaBoostConfig,
    UserError,
    disable,
    load_adapter,
    parameter_counts,
    save_adapter,
    trainable_parameters,
)
from capaboost_text import inject
from tests.core.prefix_by_hand import copies_by_hand
from tests.text.models import FAMILIES, SIZE, TOKENS, create

LOCAL = {"local_attention": 4, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    **{name: config for name, config in FAMILIES.items() if name not in ("deberta-v2", "mpnet")},
    "xlm-roberta": XLMRobertaConfig(**SIZE),
    "modernbert": ModernBertConfig(**SIZE, **LOCAL, pad_token_id=0),
}
CONFIG = CapaBoostConfig("prefix", r=3)
LENGTHS = (12, 9, 5)
SHOWN = torch.arange(12) < torch.tensor(LENGTHS)[:, None]  # row by row, which tokens are not padding
IMPLEMENTATIONS = ["eager", "sdpa"]


def make_base(family, implementation="sdpa"):
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[family])
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=implementation).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def with_prefix(family, implementation="sdpa"):
    """A model whose prefix is large enough to be seen."""
    model = inject(make_base(family, implementation), CONFIG)
    torch.manual_seed(1)
    for name, parameter in trainable_parameters(model).items():
        if ".prefix." in name:
            nn.init.normal_(parameter)
    return model


def attentions(model):
    return [module for module in model.modules() if hasattr(module, "prefix")]


def run(model, tokens=TOKENS, shown=SHOWN):
    return model(tokens, attention_mask=shown.long()).logits


def projected(attention, x, position):
    """Queries, keys and values (tokens, width) of one row, ModernBERT's turned by position."""
    if hasattr(attention, "Wqkv"):
        parts = attention.Wqkv(x).chunk(3, dim=-1)
        return tuple(turned(part, position) for part in parts[:2]) + parts[2:]
    names = ("q_lin", "k_lin", "v_lin") if hasattr(attention, "q_lin") else ("query", "key", "value")
    return tuple(getattr(attention, name)(x) for name in names)


def turned(vectors, position):
    cos, sin = (part[0, :, :8] for part in position)  # two heads of size 16: eight planes each
    a, b = vectors.unflatten(-1, (2, 2, 8)).unbind(-2)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-2).flatten(1)


def written_out(attention, x, shown, position):
    """Attention of one row with explicit concatenation, in the precision of x."""
    q, k, v = projected(attention, x, position)
    path, prefix = attention.path, attention.prefix
    keys, values = (copies_by_hand(CONFIG, path, name, getattr(prefix, name), 32) for name in ("keys", "values"))
    visible = shown.expand(len(x), -1)
    if getattr(attention, "sliding_window", None) is not None:
        place = torch.arange(len(x))
        visible = visible & ((place[:, None] - place).abs() <= 2)
    parts = []
    for cut in (slice(0, 16), slice(16, 32)):
        scores = q[:, cut] @ torch.cat([keys[:, cut], k[:, cut]]).T / 4
        scores[:, len(keys) :].masked_fill_(~visible, -torch.inf)
        parts.append(scores.softmax(-1) @ torch.cat([values[:, cut], v[:, cut]]))
    out = torch.cat(parts, dim=-1)
    last = getattr(attention, "out_lin", None) or getattr(attention, "Wo", None)
    return last(out) if last else out


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", CONFIGS)
def test_every_layer_is_attention_written_out(family, implementation):
    model, seen = with_prefix(family, implementation).double(), []
    for attention in attentions(model):
        attention.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True)
    with torch.no_grad():
        run(model)
        assert len(seen) == 2
        for attention, inputs, named, outputs in seen:
            x = inputs[0] if inputs else named["hidden_states"]
            for row, tokens in enumerate(LENGTHS):
                expected = written_out(attention, x[row], SHOWN[row], named.get("position_embeddings"))
                # eager ModernBERT takes its softmax in single precision
                torch.testing.assert_close(outputs[0][row][:tokens], expected[:tokens], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_padded_row_is_the_row_alone(family, implementation):
    model = with_prefix(family, implementation)
    with torch.no_grad():
        together = run(model)
        for row, tokens in enumerate(LENGTHS):
            alone = model(TOKENS[row : row + 1, :tokens]).logits
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", CONFIGS)
def test_base_keys_disable_and_gradients(family, implementation):
    base, model = make_base(family, implementation), with_prefix(family, implementation)
    assert base.state_dict().keys() <= model.state_dict().keys()
    model.load_state_dict(base.state_dict())
    with torch.no_grad(), disable(model):
        expected = run(base)
        assert torch.equal(run(model), expected)
        assert torch.equal(model(TOKENS).logits, base(TOKENS).logits)
    logits = run(model)
    assert (logits - expected).abs().max() > 1e-3
    logits.square().sum().backward()
    trained = {name: p for name, p in trainable_parameters(model).items() if ".prefix." in name}
    assert len(trained) == 2 * 2  # two layers, keys and values
    for name, parameter in trained.items():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", CONFIGS)
def test_round_trip_into_a_fresh_model(tmp_path, family):
    model = with_prefix(family)
    save_adapter(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(run(load_adapter(make_base(family), tmp_path)), run(model))
    model.save_pretrained(tmp_path / "whole")
    assert "capaboost" not in (tmp_path / "whole" / "config.json").read_text()


def test_the_model_keeps_its_choice_of_implementation():
    model = with_prefix("modernbert")
    twin = copy.deepcopy(model)
    nn.init.zeros_(attentions(twin)[0].prefix.values.packed)
    twin.set_attn_implementation("eager")
    assert (model.config._attn_implementation, twin.config._attn_implementation) == ("sdpa", "eager")
    attentions(twin)[0].prefix.load_state_dict(attentions(model)[0].prefix.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(run(twin), run(model), rtol=1e-4, atol=1e-4)
        weights = twin(TOKENS, output_attentions=True).attentions
    assert [w.shape[-1] for w in weights] == [6 + 12, 6 + 12]


def test_attentions_are_recorded_also_if_the_base_recorded_them_before():
    model = make_base("bert", "eager")
    model(TOKENS, output_attentions=True)
    assert len(inject(model, CONFIG)(TOKENS, output_attentions=True).attentions) == 2


def attend_with_lengths(module, query, key, value, attention_mask, scaling=None, **_):
    """An implementation that, as flash attention does, takes a mask (batch, tokens)."""
    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None, None, :].bool(), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def test_an_implementation_with_two_dimensional_masks():
    AttentionInterface.register("lengths", attend_with_lengths)
    AttentionMaskInterface.register("lengths", flash_attention_mask)
    with torch.no_grad():
        expected = run(with_prefix("roberta"))
        torch.testing.assert_close(run(with_prefix("roberta", "lengths")), expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = with_prefix("roberta").train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
        run(model).square().sum().backward()
        gradients.append(attentions(model)[0].prefix.keys.packed.grad)
    torch.testing.assert_close(*gradients)


def test_compiles_whole():
    model = with_prefix("modernbert")
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(TOKENS).logits, model(TOKENS).logits)


def decoder():
    config = BertConfig(**SIZE, is_decoder=True)
    return AutoModelForSequenceClassification.from_config(config)


def told(family, implementation):
    model = make_base(family)
    model.config._attn_implementation = implementation
    return model


REFUSED = {
    "knows no attention of DebertaV2ForSequenceClassification; choose lora": lambda: create("deberta-v2"),
    "causal; set is_decoder to False": decoder,
    'flex_attention cannot show .*="sdpa"': lambda: told("bert", "flex_attention"),
    r'flash_attention_2 cannot show model\.layers\.0\.attn a prefix; .*="sdpa"': lambda: told(
        "modernbert", "flash_attention_2"
    ),
}


@pytest.mark.parametrize("hint", REFUSED)
def test_what_takes_no_prefix_is_refused_and_stays(hint):
    model = REFUSED[hint]()
    modules, flags = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(UserError, match=hint) as caught:
        inject(model, "capaboost-prefix")
    assert "\n" not in str(caught.value)
    assert [type(m) for m in model.modules()] == modules
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not hasattr(model, "capaboost")


def test_an_implementation_chosen_later_is_checked_too():
    model = with_prefix("modernbert")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="sdpa"):
        run(model)


def test_counts():
    plain = inject(make_base("roberta"), CapaBoostConfig("prefix", r=8, num_tied=1, density=1.0))
    assert parameter_counts(plain).trainable == 2 * 2 * 8 * 32
    tied = inject(make_base("roberta"), CapaBoostConfig("prefix", r=8))
    assert parameter_counts(tied).trainable == pytest.approx(0.75 * 2 * 2 * 8 * 32, rel=0.1)
