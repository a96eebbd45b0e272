"""A tiny model of every encoder family, and tokens for it."""

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from capaboost_text import inject

SIZE = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
FAMILIES = {
    "bert": BertConfig(**SIZE),
    "roberta": RobertaConfig(**SIZE),
    "electra": ElectraConfig(**SIZE, embedding_size=32),
    "deberta-v2": DebertaV2Config(**SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True),
    "mpnet": MPNetConfig(**SIZE),
    "distilbert": DistilBertConfig(vocab_size=99, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    "modernbert": ModernBertConfig(**SIZE, global_attn_every_n_layers=1, pad_token_id=0),
}
TOKENS = torch.randint(5, 99, (3, 12), generator=torch.Generator().manual_seed(0))


def create(family, capaboost=None):
    """With weights large enough that every change shows."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(FAMILIES[family]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    return inject(model, {"r": 4, **capaboost}) if capaboost else model
