"""Every encoder family: identical at the start, alive, with the paper's parameter counts."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BloomConfig,
    DebertaV2Config,
    RobertaConfig,
)

from capaboost_core import CapaBoostConfig, UserError, load_adapter, merge, parameter_counts, save_adapter
from capaboost_core import trainable_parameters as trainable
from capaboost_text import from_pretrained, inject
from tests.text.models import FAMILIES, TOKENS, create

METHODS = [
    {"method": "lora"},
    {"method": "lora", "targets": "all-linear"},
    {"method": "padapter"},
    {"method": "hadapter"},
]


@pytest.mark.parametrize("method", METHODS, ids=["qv", "all-linear", "padapter", "hadapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_starts_as_the_base_and_every_part_is_alive(family, method):
    base, adapted = create(family), create(family, method)
    with torch.no_grad():
        expected = base(TOKENS).logits
        assert torch.equal(adapted(TOKENS).logits, expected)
    adapted.load_state_dict(base.state_dict())
    for name, parameter in trainable(adapted).items():
        if "packed" in name:
            nn.init.normal_(parameter)
    logits = adapted(TOKENS).logits
    assert (logits - expected).abs().max() > 1e-3
    logits.square().sum().backward()
    for name, parameter in trainable(adapted).items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_nothing_else_of_the_base_is_trainable(family):
    adapted = create(family, {"method": "lora"})
    base = {name for name, _ in adapted.base_model.named_parameters() if "lora_" not in name}
    names = {n.removeprefix(f"{adapted.base_model_prefix}.") for n in trainable(adapted)}
    assert not names & base
    assert any(name.startswith("classifier") for name in names)
    assert ("pooler.dense.weight" in names) == (family == "deberta-v2")


def test_round_trip_and_merge(tmp_path):
    adapted = create("deberta-v2", {"targets": "all-linear"})
    for parameter in trainable(adapted).values():
        nn.init.normal_(parameter, std=0.1)
    save_adapter(adapted, tmp_path)
    with torch.no_grad():
        expected = adapted(TOKENS).logits
        assert torch.equal(load_adapter(create("deberta-v2"), tmp_path)(TOKENS).logits, expected)
        torch.testing.assert_close(merge(adapted)(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


def test_loads_a_folder_and_refuses_what_it_does_not_know(tmp_path):
    create("roberta").base_model.save_pretrained(tmp_path / "base")
    model = from_pretrained(tmp_path / "base", num_labels=3)
    assert model.classifier.out_proj.out_features == 3
    assert parameter_counts(model).trainable > 0
    with pytest.raises(UserError, match=r"config\.json"):
        from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match="question-answering"):
        from_pretrained(tmp_path / "base", task="qa")
    sizes = dict(vocab_size=9, hidden_size=8, n_layer=1, n_head=2)
    bloom = AutoModelForSequenceClassification.from_config(BloomConfig(**sizes))
    with pytest.raises(UserError, match="no roles are known of the architecture bloom"):
        inject(bloom, "lora")


ROBERTA = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
DEBERTA = DebertaV2Config(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    vocab_size=128100,
    relative_attention=True,
    position_buckets=256,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type=["p2c", "c2p"],
    position_biased_input=False,
    type_vocab_size=0,
    max_relative_positions=-1,
)
PLAIN = {"num_tied": 1, "density": 1.0}
BUDGETS = [
    (ROBERTA, {"method": "lora", "r": 32, **PLAIN}, 0.95),
    (ROBERTA, {"method": "lora", "r": 32}, 0.71),
    (ROBERTA, {"method": "prefix", "r": 64, **PLAIN}, 0.95),
    (ROBERTA, {"method": "padapter", "r": 64, **PLAIN}, 0.96),  # with biases; the paper's 0.95 leaves them out
    (ROBERTA, {"method": "padapter", "r": 64}, 0.72),  # likewise 0.71
    (DEBERTA, {"method": "lora", "r": 8, "targets": "all-linear", **PLAIN}, 0.72),
    (DEBERTA, {"method": "lora", "r": 8, "targets": "all-linear"}, 0.54),
    (DEBERTA, {"method": "padapter", "r": 64, **PLAIN}, 0.65),  # likewise 0.64
    (DEBERTA, {"method": "hadapter", "r": 32, **PLAIN}, 0.65),
    (DEBERTA, {"method": "padapter", "r": 32}, 0.25),  # likewise 0.24
]


# Table 14: widths or ranks, and the paper's percentages, which leave biases out here and there.
SQUAD_BUDGETS = {
    "hadapter": ({**PLAIN}, (32, 16, 8, 4), (0.65, 0.32, 0.16, 0.08)),
    "padapter": ({**PLAIN}, (64, 32, 16, 8), (0.65, 0.32, 0.16, 0.08)),
    "capaboost-padapter": ({"method": "padapter"}, (64, 32, 16, 8), (0.49, 0.24, 0.12, 0.06)),
}


@pytest.mark.parametrize("method", SQUAD_BUDGETS)
@pytest.mark.parametrize("budget", range(4))
def test_squad_budgets_of_the_paper(method, budget):
    settings, widths, percents = SQUAD_BUDGETS[method]
    settings = {"method": method, "r": widths[budget]} | settings
    with torch.device("meta"):
        model = AutoModelForQuestionAnswering.from_config(DEBERTA)
    counts = parameter_counts(inject(model, CapaBoostConfig.from_dict(settings)))
    biases = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and name.endswith("_bias"))
    adapters = 12 * (2 if method == "hadapter" else 1)
    assert biases == adapters * (widths[budget] + 768)
    share = 100 * (counts.trainable - biases) / counts.total
    assert share - 0.005 < percents[budget] + 1e-9 < counts.percent + 0.006


@pytest.mark.parametrize("r", [8, 4, 2, 1])
def test_squad_budget_of_lora_is_its_share_in_table_3(r):
    # Table 14 calls these 0.65 to 0.08 %, after the adapters that they stand beside; Table 3 has 0.72 % for r = 8.
    with torch.device("meta"):
        model = AutoModelForQuestionAnswering.from_config(DEBERTA)
    config = CapaBoostConfig(method="lora", r=r, targets="all-linear", **PLAIN)
    assert parameter_counts(inject(model, config)).percent == pytest.approx(0.722 * r / 8, abs=0.001)


@pytest.mark.parametrize(("architecture", "settings", "percent"), BUDGETS, ids=lambda v: str(v)[:60])
def test_shares_of_the_paper(architecture, settings, percent):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(architecture)
    counts = parameter_counts(inject(model, CapaBoostConfig.from_dict(settings)))
    assert counts.percent == pytest.approx(percent, abs=0.0051)


def test_hadapter_after_the_dropouts_of_its_layers():
    settings = {"method": "hadapter", "after_dropout": True, "r": 4}
    for family in ("bert", "deberta-v2"):
        plan = create(family, settings).capaboost.plan
        first = [
            (target.path.split("layer.0.")[1], target.follows.split("layer.0.")[1]) for target in plan.targets[:2]
        ]
        assert first == [
            ("attention.output.dropout", "attention.output.dense"),
            ("output.dropout", "output.dense"),
        ]
    with pytest.raises(UserError, match=r"ModernBert.* has no dropout after both layers"):
        create("modernbert", settings)


def test_a_fused_reading_is_for_fused_layers_only():
    (first, *_) = create("modernbert", {"targets": "fused-qkv"}).capaboost.plan.targets
    assert (first.path.rpartition(".")[2], first.slices) == ("Wqkv", None)
    with pytest.raises(UserError, match=r"Roberta.* has q, k and v apart; type attention-qv or all-linear"):
        create("roberta", {"targets": "fused-qkv"})
