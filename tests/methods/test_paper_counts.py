"""Trained parameters of ViT-B/16, RoBERTa-base and BERT-base by each paper's formula, and as it prints them."""

import pytest
import timm
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, RobertaConfig

import capaboost_text
import capaboost_vision
from capaboost_core import parameter_counts
from capaboost_core.methods import resolve_config

W, L = 768, 12  # width and blocks of all three
BIASES = 3 * W + W + 4 * W + W + 2 * W  # of a block: qkv, o, f1, f2, two norms
REPADAPTER = W * 8 + 8 + W * 8 // 2 + W
COUNTS = {
    ("vit", "adaptformer", 64): L * (2 * 64 * W + 64 + W),  # 1.26 M with the head of CIFAR-100
    ("vit", "bitfit", None): L * BIASES + 2 * W,  # 0.10 M
    ("vit", "fact-tt", 16): 2 * 16 * W + 12 * L * 16**2,  # 2 d r + 12 L r^2
    ("vit", "fact-tk", 32): 2 * 32 * W + 12 * L * 32 + 32**3,  # 2 d r + 12 L r + r^3
    ("vit", "repadapter", 8): 2 * L * REPADAPTER,  # 0.23 M
    ("vit", "ssf", None): 2 * (L * BIASES + 2 * W),  # 0.28 M with the head of CIFAR-100
    ("vit", "vpt-deep", 50): L * 50 * W,
    ("vit", "vpt-shallow", 50): 50 * W,
    ("bert", "bitfit", None): L * BIASES + 2 * W,  # 0.09 %
    ("bert", "hadamard", None): L * 4 * W,  # 0.033 %
    ("roberta", "fact-tt", 16): 2 * 16 * W + 12 * L * 16**2,
    ("roberta", "repadapter", 8): 2 * L * REPADAPTER,
}
PRINTED = {("bert", "bitfit"): 0.09, ("bert", "hadamard"): 0.033}  # percent of the whole model


def make(kind):
    with torch.device("meta"):
        if kind == "vit":
            return timm.create_model("vit_base_patch16_224")
        config = BertConfig() if kind == "bert" else RobertaConfig(vocab_size=50265, max_position_embeddings=514)
        return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(("kind", "method", "r"), COUNTS)
def test_formula(kind, method, r):
    inject = capaboost_vision.inject if kind == "vit" else capaboost_text.inject
    config = resolve_config(method).replace(**{} if r is None else {"r": r})
    counts = parameter_counts(inject(make(kind), config))
    assert counts.trainable == COUNTS[kind, method, r]
    if (kind, method) in PRINTED:
        assert counts.percent == pytest.approx(PRINTED[kind, method], rel=0.05)
