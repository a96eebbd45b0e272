"""Shipped architectures: sizes by hand arithmetic, no weights, no network."""

import json

import pytest
import torch

from capaboost_core import UserError, parameter_counts
from capaboost_text import architectures, inject

WIDTH, INNER, LAYERS = 768, 3072, 12
LAYER = 4 * WIDTH * (WIDTH + 1) + 2 * WIDTH * INNER + INNER + WIDTH + 4 * WIDTH  # attention, feed-forward, two norms
TOTALS = {
    # tokens, positions and segment, a norm
    "roberta-base": (50265 + 514 + 1 + 2) * WIDTH + LAYERS * LAYER,
    # tokens, a norm; 512 relative positions with a norm
    "microsoft/deberta-v3-base": (128100 + 2 + 512 + 2) * WIDTH + LAYERS * LAYER,
}
SMALL = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "vocab_size": 11, "max_position_embeddings": 6}  # fmt: skip


def on_meta(name, **changes):
    with torch.device("meta"):
        return architectures.build(name, **changes)


@pytest.mark.parametrize("name", TOTALS)
def test_totals_and_shares(name):
    assert sum(p.numel() for p in on_meta(name).base_model.parameters()) == TOTALS[name]
    lora = {"num_tied": 1, "density": 1.0, "targets": "all-linear", "r": 8}
    counts = parameter_counts(inject(on_meta(name, num_labels=3), lora))
    assert counts.trainable == LAYERS * 8 * (4 * 2 * WIDTH + 2 * (WIDTH + INNER)) == 1_327_104
    assert counts.total == TOTALS[name]


def test_published_totals():
    assert TOTALS == {"roberta-base": 124_055_040, "microsoft/deberta-v3-base": 183_831_552}


def test_a_folder_with_a_config_runs(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    assert architectures.is_known(str(tmp_path))
    model = architectures.build(str(tmp_path), num_labels=4)
    assert model(torch.ones(2, 6, dtype=torch.long)).logits.shape == (2, 4)
    assert model.config.name_or_path == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        (None, "sequence-classification", "roberta-base"),
        ("{", "sequence-classification", "config.json"),
        ('{"model_type": "no-such"}', "sequence-classification", "config.json"),
        ('{"model_type": "clip"}', "sequence-classification", "config.json"),
        (json.dumps(SMALL), "summary", "question-answering"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, content, task, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        architectures.build(str(tmp_path), task)
    assert "\n" not in str(caught.value)
