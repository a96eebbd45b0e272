"""Windows to padded batches, and a batch's logits back to windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capaboost_text.padding import pad
from capaboost_text.squad.windows import Window


def collate(windows: Sequence[Window], tokenizer: Any, multiple: int = 1) -> dict[str, Tensor]:
    """Pad windows as `pad` does; where that is on the left, the answers move along with the tokens.

    Returns:
        The model's inputs (windows, length), start_positions and end_positions (windows,).
    """
    batch = pad(windows, tokenizer, multiple)
    length = batch["input_ids"].shape[1]
    shift = [length - len(w) if tokenizer.padding_side == "left" else 0 for w in windows]
    batch["start_positions"] = torch.tensor([w.start + s for w, s in zip(windows, shift, strict=True)])
    batch["end_positions"] = torch.tensor([w.end + s for w, s in zip(windows, shift, strict=True)])
    return batch


def strip_padding(logits: np.ndarray, windows: Sequence[Window], padding_side: str) -> list[np.ndarray]:
    """The rows of (windows, padded length) cut to each window's own tokens."""
    rows = zip(logits, windows, strict=True)
    return [row[len(row) - len(w) :] if padding_side == "left" else row[: len(w)] for row, w in rows]
