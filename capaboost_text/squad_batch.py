"""Windows to padded batches, and a batch's logits back to windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capaboost_text.squad_windows import Window


def collate(windows: Sequence[Window], tokenizer: Any, multiple: int = 1) -> dict[str, Tensor]:
    """Pad windows to the longest of them, on the tokenizer's side, which moves the answers along with the tokens.

    Args:
        windows: At least one window.
        tokenizer: The one that made them.
        multiple: Round the length up to a multiple of this.

    Returns:
        input_ids, attention_mask and perhaps token_type_ids (windows, length), start_positions and
        end_positions (windows,).
    """
    length = -(-max(map(len, windows)) // multiple) * multiple
    left = tokenizer.padding_side == "left"

    def stack(rows: Sequence[np.ndarray], fill: int) -> Tensor:
        table = np.full((len(rows), length), fill, np.int64)
        for line, row in zip(table, rows, strict=True):
            line[slice(length - len(row), None) if left else slice(len(row))] = row
        return torch.from_numpy(table)

    batch = {"input_ids": stack([w.input_ids for w in windows], tokenizer.pad_token_id)}
    batch["attention_mask"] = stack([np.ones(len(w), np.int64) for w in windows], 0)
    if windows[0].token_type_ids is not None:
        batch["token_type_ids"] = stack([w.token_type_ids for w in windows], tokenizer.pad_token_type_id)
    shift = [length - len(w) if left else 0 for w in windows]
    batch["start_positions"] = torch.tensor([w.start + s for w, s in zip(windows, shift, strict=True)])
    batch["end_positions"] = torch.tensor([w.end + s for w, s in zip(windows, shift, strict=True)])
    return batch


def strip_padding(logits: np.ndarray, windows: Sequence[Window], padding_side: str) -> list[np.ndarray]:
    """The rows of (windows, padded length) cut to each window's own tokens."""
    rows = zip(logits, windows, strict=True)
    return [row[len(row) - len(w) :] if padding_side == "left" else row[: len(w)] for row, w in rows]
