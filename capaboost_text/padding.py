"""Rows of tokens to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Tokens(Protocol):
    """A row of tokens without padding.

    Attributes:
        input_ids: (n,) token ids.
        token_type_ids: (n,) segment ids, for a model that takes them.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None

    def __len__(self) -> int: ...


def pad(rows: Sequence[Tokens], tokenizer: Any, multiple: int = 1) -> dict[str, Tensor]:
    """A model's inputs, padded to the longest row on the tokenizer's side.

    Args:
        rows: At least one.
        tokenizer: The one that made them.
        multiple: Round the length up to a multiple of this.

    Returns:
        input_ids, attention_mask and perhaps token_type_ids, (rows, length) each.
    """
    length = -(-max(map(len, rows)) // multiple) * multiple
    left = tokenizer.padding_side == "left"

    def stack(values: list[np.ndarray], fill: int) -> Tensor:
        table = np.full((len(values), length), fill, np.int64)
        for line, row in zip(table, values, strict=True):
            line[slice(length - len(row), None) if left else slice(len(row))] = row
        return torch.from_numpy(table)

    inputs = {"input_ids": stack([row.input_ids for row in rows], tokenizer.pad_token_id)}
    inputs["attention_mask"] = stack([np.ones(len(row), np.int64) for row in rows], 0)
    if rows[0].token_type_ids is not None:
        inputs["token_type_ids"] = stack([row.token_type_ids for row in rows], tokenizer.pad_token_type_id)
    return inputs
