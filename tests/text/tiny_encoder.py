"""A random encoder with its tokenizer in a folder, as `save_pretrained` leaves them."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from tests.text.squad_case import tokenizer


def save_encoder(folder: Path, **changes) -> Path:
    """A BERT of two blocks of width 32, with room for every tokenizer of `squad_case`; returns the folder."""
    torch.manual_seed(0)
    words = tokenizer("bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(**{"vocab_size": 300, "max_position_embeddings": 64, **sizes, **changes})
    BertModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
