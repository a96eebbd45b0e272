"""Multiply-adds of transformers encoders: half of torch's own count, by hand, and the paper's factor density * d."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, DebertaV2Config, RobertaConfig

from capaboost.report.flops import count_flops
from capaboost_text import inject

ROBERTA = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
RELATIVE = {
    "relative_attention": True,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_relative_positions": -1,
}
DEBERTA = DebertaV2Config(
    vocab_size=128100,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    position_buckets=256,
    **RELATIVE,
)
NARROW, SHORT, BUCKETS = 32, 6, 8
SMALL = {"vocab_size": 99, "hidden_size": NARROW, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 48}
ROWS, LENGTH, WIDTH = 2, 64, 768
TOKENS, LAYERS = ROWS * LENGTH, 12


def encoder(config, attention=None):
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()


def on_meta(config, attention=None):
    """Embeddings for inputs: tokens without values would be asked whether they are padding."""
    with torch.device("meta"):
        return encoder(config, attention), {"inputs_embeds": torch.ones(ROWS, LENGTH, WIDTH)}


def torch_count(model, inputs, backward=False):
    in_place = {torch.ops.aten.addmm_: lambda shape, a, b, *_, **settings: 2 * a[0] * a[1] * b[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as of_torch:
        logits = model(**inputs).logits
        if backward:
            logits.sum().backward()
    return of_torch.get_total_flops()


LINEAR = LAYERS * TOKENS * 12 * WIDTH**2  # q, k, v and o, and two matrices of four times their size
ATTENTION = LAYERS * 2 * ROWS * LENGTH**2 * WIDTH  # Q K^T and A V
HEAD = ROWS * (WIDTH**2 + WIDTH * 2)


@pytest.mark.parametrize(("attention", "name"), [("sdpa", "scaled_dot_product_attention"), ("eager", "matmul")])
def test_roberta_base(attention, name):
    model, inputs = on_meta(ROBERTA, attention)
    counts = count_flops(model, inputs)
    assert counts.executed_by_operator == {"linear": LINEAR + HEAD, name: ATTENTION}
    assert 2 * counts.executed == torch_count(model, inputs)
    assert counts.negligible["aten::gelu"] == LAYERS
    assert counts.unsupported == {}


def test_deberta_v3_base():
    """Each layer sends its 512 relative positions through q and k, and multiplies them by the tokens of all rows."""
    model, inputs = on_meta(DEBERTA)
    counts = count_flops(model, inputs)
    positions = LAYERS * 2 * 512 * WIDTH**2
    relative = LAYERS * 2 * TOKENS * 512 * WIDTH
    assert counts.executed_by_operator == {"linear": LINEAR + positions + HEAD, "bmm": ATTENTION + relative}
    assert 2 * counts.executed == torch_count(model, inputs)


def test_query_of_deberta_is_adapted_for_tokens_and_for_relative_positions():
    counts = count_flops(inject(encoder(FAMILIES["deberta-v2"]), {"r": 4}), INPUTS)
    rows = 2 * (2 * ROWS * SHORT + 2 * BUCKETS)  # in two layers, q and v of the tokens and q of the positions
    assert counts.effective_by_operator["tied"] == rows * 4 * (NARROW + NARROW)
    assert counts.executed_by_operator["tied"] == 2 * counts.effective_by_operator["tied"]


FAMILIES = {
    "roberta": RobertaConfig(**SMALL),
    "deberta-v2": DebertaV2Config(**SMALL, **RELATIVE, position_buckets=BUCKETS),
}
INPUTS = {"input_ids": torch.full((ROWS, SHORT), 5)}
METHODS = {
    "attention-qv": {"method": "lora"},
    "all-linear": {"method": "lora", "targets": "all-linear"},
    "padapter": {"method": "padapter"},
    "hadapter": {"method": "hadapter"},
    "prefix": {"method": "prefix"},
}
CASES = [(family, method) for family in FAMILIES for method in METHODS if (family, method) != ("deberta-v2", "prefix")]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_training_step(family, method):
    """Executed is what torch counts; effective is what a plain module costs, as density * d is 1."""
    tied, plain = ({"r": 4, **METHODS[method], **settings} for settings in ({}, {"num_tied": 1, "density": 1.0}))
    model = inject(encoder(FAMILIES[family]), tied)
    counts = count_flops(model, INPUTS, backward=True)
    assert 2 * counts.executed == torch_count(model, INPUTS, backward=True)
    assert counts.unsupported == {}
    of_plain = count_flops(inject(encoder(FAMILIES[family]), plain), INPUTS, backward=True)
    assert counts.effective == of_plain.executed == of_plain.effective < counts.executed


def test_padding_mask_changes_nothing():
    model, mask = encoder(FAMILIES["roberta"]), torch.ones(ROWS, SHORT, dtype=torch.long)
    mask[0, 3:] = 0
    assert count_flops(model, {**INPUTS, "attention_mask": mask}).executed == count_flops(model, INPUTS).executed
