"""A model's tokenizer, and texts or pairs as rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer

from capaboost_core.errors import UserError, reason_of
from capaboost_text.example import Example
from capaboost_text.hub import reach_hub

CHUNK = 1000


@dataclass(frozen=True, eq=False)
class Encoded:
    """One text or pair.

    Attributes:
        input_ids: (n,) token ids, special ones included.
        token_type_ids: (n,) segment ids, for a model that takes them.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None

    def __len__(self) -> int:
        return len(self.input_ids)


def load_tokenizer(name_or_path: str | Path, max_length: int) -> Any:
    """The model's fast tokenizer.

    Raises:
        UserError: If it cannot be had or has no vocabulary, or the model reads fewer than `max_length` tokens.
    """
    try:
        with reach_hub(name_or_path):
            config = AutoConfig.from_pretrained(name_or_path)
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
        most = min(tokenizer.model_max_length, readable_tokens(config))
    except Exception as error:  # transformers fails in many ways on damaged files
        raise UserError(
            f"cannot load the tokenizer of {name_or_path} ({reason_of(error)}); give a folder with "
            "config.json and tokenizer.json, or a hub name with a network"
        ) from error
    if not any(any(map(str.isalnum, word)) for word in words):  # what transformers makes of a folder without its files
        raise UserError(
            f"the tokenizer of {name_or_path} has no vocabulary; add tokenizer.json or what else the model's "
            "tokenizer was saved as"
        )
    if max_length > most:
        raise UserError(f"data.max_length is {max_length}, but {name_or_path} reads {most} tokens; set {most} or less")
    return tokenizer


def readable_tokens(config: Any) -> int:
    """The longest input that the position embeddings permit."""
    if not getattr(config, "position_biased_input", True):  # DeBERTa-v2/v3 has relative positions only
        return 10**9
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else 0
    return getattr(config, "max_position_embeddings", 10**9) - offset


def encode(examples: Sequence[Example], tokenizer: Any, max_length: int, shown: bool = False) -> list[Encoded]:
    """Each example's tokens, the longer text of a pair cut first where they are too many.

    Args:
        examples: Texts or pairs.
        tokenizer: The model's.
        max_length: Tokens of the longest row, special ones included.
        shown: Show a bar.
    """
    rows: list[Encoded] = []
    with tqdm(total=len(examples), desc="tokenise", unit=" rows", leave=False, disable=not shown) as bar:
        for at in range(0, len(examples), CHUNK):
            part = examples[at : at + CHUNK]
            pairs = [example.pair for example in part] if part[0].pair is not None else None
            batch = tokenizer([e.text for e in part], pairs, truncation=True, max_length=max_length)
            types = batch.get("token_type_ids", [None] * len(part))
            rows += [_encoded(ids, segments) for ids, segments in zip(batch["input_ids"], types, strict=True)]
            bar.update(len(part))
    return rows


def _encoded(ids: list[int], segments: list[int] | None) -> Encoded:
    return Encoded(np.array(ids, np.int32), None if segments is None else np.array(segments, np.int8))
