"""A random decoder with its tokenizer in a folder, as `save_pretrained` leaves them."""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.text.squad_case import TEXT

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=None)  # fmt: skip
OWN = {"gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16}, "mixtral": {"num_local_experts": 2}}


@cache
def tokenizer(begins: bool = True) -> PreTrainedTokenizerFast:
    """Byte pairs, with <s> before a text if it is to begin so, padding on the left, and a template for messages."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([TEXT], trainer)
    if begins:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    words = PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **ends)
    words.chat_template = TEMPLATE
    return words


def decoder(family: str = "llama") -> nn.Module:
    """Two blocks of width 32, with weights that are large enough for every token to count."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | OWN.get(family, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def save_decoder(folder: Path) -> Path:
    """Returns the folder."""
    decoder().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
