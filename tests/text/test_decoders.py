"""Every decoder's row of the table, on tiny random models: each role is the layer that computes it, and is alive."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from capaboost_core import UserError, load_adapter, merge, save_adapter, trainable_parameters, unload, unmerge
from capaboost_core.injection import adapted_layers
from capaboost_core.plan import MATRICES, linear_shape
from capaboost_text import inject
from capaboost_text.roles import FAMILIES, roles_of

WIDTH, INNER, HEADS, GROUPS, SIZE = 32, 48, 4, 2, 16
COMMON = dict(vocab_size=99, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, pad_token_id=0,
    intermediate_size=INNER, num_key_value_heads=GROUPS, max_position_embeddings=64, num_labels=3)  # fmt: skip
OPT = dict(ffn_dim=INNER, word_embed_proj_dim=WIDTH, activation_function="gelu")  # ReLU: parts of a token may be dead
GPT2 = dict(vocab_size=99, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=INNER, num_labels=3, pad_token_id=0)
CONFIGS = {
    "llama": COMMON,
    "mistral": COMMON | {"head_dim": SIZE},
    "qwen2": COMMON,
    "qwen3": COMMON | {"head_dim": SIZE},
    "gemma": COMMON | {"head_dim": SIZE},
    "gemma2": COMMON | {"head_dim": SIZE, "query_pre_attn_scalar": SIZE},
    "gemma3_text": COMMON | {"head_dim": SIZE, "query_pre_attn_scalar": SIZE},
    "olmo2": COMMON,
    "phi3": COMMON,
    "opt": {k: v for k, v in COMMON.items() if k not in ("intermediate_size", "num_key_value_heads")} | OPT,
    "gpt2": GPT2 | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}
KINDS = {"language model": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2"}
FUSED = {"phi3", "gpt2"}
TOKENS = torch.randint(5, 99, (2, 9), generator=torch.Generator().manual_seed(0))
every_family = pytest.mark.parametrize("family", CONFIGS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def create(family: str, kind: str = "language model", **adapter) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **CONFIGS[family], attn_implementation="eager")
    if kind == "classifier" and type(config) not in KINDS[kind]._model_mapping:
        pytest.skip(f"transformers has no {kind} of {family}")
    model = KINDS[kind].from_config(config, dtype=torch.float64).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            nn.init.normal_(parameter, std=0.3)
    return inject(model, {"r": 4, "targets": "all-linear", **adapter}) if adapter else model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(TOKENS).logits


def test_every_decoder_has_a_row():
    encoders = {"bert", "roberta", "xlm-roberta", "electra", "deberta-v2", "mpnet", "distilbert", "modernbert"}
    assert FAMILIES.keys() - encoders - {"mixtral", "t5", "bart"} == CONFIGS.keys()  # those: test_language_models


@every_kind
@every_family
def test_starts_as_the_base(family, kind):
    base, adapted = create(family, kind), create(family, kind, method="lora")
    torch.testing.assert_close(logits(adapted), logits(base), rtol=0, atol=1e-12)
    adapted.load_state_dict(base.state_dict())


@every_family
def test_a_language_model_keeps_its_head_frozen_and_a_classifier_trains_its_own(family):
    assert all("lora_" in name for name in trainable_parameters(create(family, method="lora")))
    classifier = create(family, "classifier", method="lora")
    assert [name for name in trainable_parameters(classifier) if "lora_" not in name] == ["score.weight"]


@every_family
def test_all_linear_is_every_matrix_of_the_blocks_and_nothing_else(family):
    base = create(family)
    blocks = {path for path, module in base.named_modules() if linear_shape(module)} - {"lm_head"}
    adapted = create(family, method="lora")
    assert {layer.path for layer in adapted_layers(adapted)} == blocks
    for block in roles_of(base).blocks:
        for place in block.modules_for(MATRICES):
            layer = adapted.get_submodule(place.path)
            assert (place.rows or (0, layer.out_features)) in layer.slices
    of_block = 5 + (family in GATED) + 1 - 2 * (family in FUSED)
    assert len(blocks) == 2 * of_block


@every_kind
@every_family
def test_every_role_is_alive(family, kind):
    """Another matrix in the place of one role alone, and of each where there are two, changes the output."""
    model = create(family, kind)
    expected, block = logits(model), roles_of(model).blocks[0]
    for role in MATRICES:
        places = block.modules_for([role])
        assert len(places) == (2 if role == "f1" and family in GATED else 1)
        for place in places:
            rows = rows_of(model, place).data
            before = rows.clone()
            rows.add_(torch.randn_like(rows))
            assert (logits(model) - expected).abs().max() > 1e-6, place
            rows.copy_(before)


@every_family
def test_increments_reach_the_logits_and_have_gradients(family):
    model = create(family, method="lora")
    expected = logits(model)
    for layer in adapted_layers(model):
        before = layer.lora_B.packed.detach().clone()
        nn.init.normal_(layer.lora_B.packed)
        assert (logits(model) - expected).abs().max() > 1e-6, layer.path
        layer.lora_B.packed.data.copy_(before)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.lora_B.packed, std=0.1)
    model(TOKENS).logits.square().sum().backward()
    for name, parameter in trainable_parameters(model).items():
        assert parameter.grad.abs().sum() > 0, name


def rows_of(model: nn.Module, place) -> torch.Tensor:
    """The rows (out, in) of a weight that play a role."""
    layer = model.get_submodule(place.path)
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
    return weight if place.rows is None else weight[slice(*place.rows)]


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v of causal grouped-query attention over (tokens, width)."""
    q, k, v = (x.unflatten(-1, (-1, size)).transpose(-3, -2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / size**0.5
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma", "phi3", "opt", "gpt2"])
def test_each_place_is_the_q_k_v_and_o_of_the_written_out_attention(family):
    """With rotary angles of zero, softmax(q k^T / sqrt(d)) v W_o of the named rows is the attention's output."""
    model = create(family)
    block = roles_of(model).blocks[0]
    (q,), (k,), (v,), (o,) = (block.modules_for([role]) for role in "qkvo")
    attention = model.get_submodule(o.path.rpartition(".")[0])
    widths = [len(rows_of(model, place)) for place in (q, k, v)]
    grouped = hasattr(model.config, "num_key_value_heads")
    assert widths == [attention.head_dim * n for n in (HEADS, *(GROUPS if grouped else HEADS,) * 2)]
    x = torch.randn(1, 7, WIDTH, dtype=torch.float64)

    def apply(place):
        layer = model.get_submodule(place.path)
        bias = None if layer.bias is None else layer.bias if place.rows is None else layer.bias[slice(*place.rows)]
        return F.linear(x, rows_of(model, place), bias)

    mixed = written_out(apply(q), apply(k), apply(v), attention.head_dim)
    expected = F.linear(mixed, rows_of(model, o), model.get_submodule(o.path).bias)
    mask = torch.full((1, 1, 7, 7), -torch.inf, dtype=torch.float64).triu(1)
    angles = (torch.ones(1, 7, attention.head_dim).double(), torch.zeros(1, 7, attention.head_dim).double())
    more = {} if family in ("opt", "gpt2") else {"position_embeddings": angles}
    with torch.no_grad():
        found, *_ = attention(x, attention_mask=mask, **more)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # some have a softmax of single precision


@pytest.mark.parametrize("family", ["gpt2", "phi3", "qwen3"])
@pytest.mark.parametrize("targets", ["attention-qv", "all-linear"])
def test_merge_unmerge_and_unload(family, targets):
    model = create(family, method="lora", targets=targets)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.lora_B.packed, std=0.3)
    expected, base = logits(model), create(family)
    assert (expected - logits(base)).abs().max() > 1e-3
    for settle in (merge, unmerge, merge, unload):
        torch.testing.assert_close(logits(settle(model)), expected)
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    base.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(base), expected)


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_adapter_files_go_round(family, tmp_path):
    model = create(family, method="lora")
    for layer in adapted_layers(model):
        nn.init.normal_(layer.lora_B.packed, std=0.3)
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(create(family), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), logits(model))


def test_conv1d_of_gpt2_in_lists_and_formulas():
    model = create("gpt2", method="lora", targets=["mlp.c_fc"])
    (first, _) = adapted_layers(model)
    assert (first.in_features, first.out_features) == (WIDTH, INNER)
    nn.init.normal_(first.lora_B.packed)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    (increment,) = first.delta_weights()
    torch.testing.assert_close(first(x), x @ first.weight + first.bias + x @ increment.T)


@pytest.mark.parametrize("method", ["padapter", "hadapter"])
def test_adapters_after_conv1d_are_refused(method):
    model = create("gpt2")
    with pytest.raises(UserError, match=r"h\.0\.\S+ is a Conv1D, not an nn\.Linear") as caught:
        inject(model, method)
    assert "\n" not in str(caught.value)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
@pytest.mark.parametrize("method", ["padapter", "hadapter"])
def test_adapters_after_linear_layers_are_alive(family, method):
    model = inject(create(family), {"method": method, "r": 4})
    expected = logits(model)
    torch.testing.assert_close(expected, logits(create(family)))
    for layer in adapted_layers(model):
        nn.init.normal_(layer.adapter.up.packed)
    assert (logits(model) - expected).abs().max() > 1e-6
