"""Language modelling for the training loop: the loss of each predicted token, and the perplexity of a split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_text.encoder_task import EncoderTask
from capaboost_text.lm.data import IGNORED, Block, Splits

LOGITS_CPU, LOGITS_GPU = 2**27, 2**30  # of one batch in evaluation
LEAK = 0.02  # share of a change of a token's own logits that rounding in a mixture of experts stays below


class LanguageModeling(EncoderTask[Block]):
    """Tokens to the next one.

    Documents that share a block do not attend to each other: positions start from 0 in each, by which transformers'
    masks separate them where no attention mask and no cache is given. A model that does not follow is refused.

    Args:
        accelerator: Gives the device and the processes.
        tokenizer: The model's.
        splits: Blocks to train, select and test on.
        is_packed: Whether a block may hold several documents.
        batch_size: Blocks of one optimizer step, over all processes.
        seed: Of the order of the blocks.
    """

    unit = "blocks"

    def __init__(
        self, accelerator: Accelerator, tokenizer: Any, splits: Splits, is_packed: bool, batch_size: int, seed: int
    ):
        super().__init__(accelerator, tokenizer, splits.train, batch_size, seed)
        self.splits, self.is_packed = splits, is_packed
        self.predicted = np.array([row.predicted for row in self.rows])
        self.tokens_at_once = max(1, (LOGITS_GPU if self.on_gpu else LOGITS_CPU) // len(tokenizer))

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """(rows, 3): the index of each row, and for all the tokens that the batch predicts and its number of rows."""
        share = np.broadcast_to([self.predicted[rows].sum(), len(rows)], (len(rows), 2))
        return np.column_stack([rows, share])

    def contents(self) -> Iterator[np.ndarray]:
        """Token ids and labels of the rows to train and select on."""
        for row in (*self.rows, *self.splits.selection):
            yield row.input_ids
            yield row.labels

    def evaluated(self) -> Iterator[Sequence[Block]]:
        yield from filter(None, (self.splits.selection, self.splits.test))

    def inputs(self, rows: Sequence[Block]) -> dict[str, Any]:
        """The rows as the model's inputs, padded on the right whatever the tokenizer pads for generation."""
        ids = self._padded([row.input_ids for row in rows], self.tokenizer.pad_token_id)
        if self.is_packed:  # each padding token is a document of its own, at position 0
            more = {"position_ids": self._padded([row.positions for row in rows], 0)}
        else:
            more = {"attention_mask": self._padded([np.ones(len(row)) for row in rows], 0)}
        return {**self.to_device({"input_ids": ids, **more}), "use_cache": False}

    def _padded(self, rows: list[np.ndarray], fill: int) -> Tensor:
        length = -(-max(map(len, rows)) // self.multiple) * self.multiple
        table = np.full((len(rows), length), fill, np.int64)
        for padded, row in zip(table, rows, strict=True):
            padded[: len(row)] = row
        return torch.from_numpy(table)

    def loss(self, model: nn.Module, batch: np.ndarray) -> Tensor:
        """The mean over the tokens that the complete batch predicts, of which this may be a slice.

        Each slice counts in proportion to its tokens: slices of equal weight would make the gradient depend on how
        a batch is cut.
        """
        index, tokens, count = batch[:, 0], batch[0, 1], batch[0, 2]
        return self._sum(model, [self.rows[i] for i in index]) * float(count / (tokens * len(batch)))

    def _sum(self, model: nn.Module, rows: Sequence[Block]) -> Tensor:
        """The sum of -log p of the predicted tokens, natural logarithm."""
        logits = model(**self.inputs(rows)).logits[:, :-1].float()
        labels = self._padded([row.labels for row in rows], IGNORED)[:, 1:].to(self.device)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and perplexity on the rows for selection, if there are any."""
        return self._score(model, self.splits.selection, "selection_") if self.splits.selection else {}

    def test(self, model: nn.Module) -> dict[str, float]:
        """Loss and perplexity on the test rows."""
        return self._score(model, self.splits.test, "")

    @torch.no_grad()
    def _score(self, model: nn.Module, rows: Sequence[Block], prefix: str) -> dict[str, float]:
        """The mean loss of a token, each token of the split with the same weight, and its exponential."""
        loss, count = 0.0, 0
        for batch in self.in_batches(rows, prefix.rstrip("_") or "test"):
            chosen = [rows[i] for i in batch]
            loss += self._sum(model, chosen).item()
            count += sum(row.predicted for row in chosen)
        total, predicted = self.sum_over_processes(torch.tensor([loss, count], device=self.device)).tolist()
        mean = total / predicted
        return {f"{prefix}perplexity": math.exp(min(mean, 700.0)), f"{prefix}loss": mean}

    @torch.no_grad()
    def check(self, model: nn.Module) -> None:
        """Tokens see neither later ones nor other documents.

        Where the last token of the first of two documents changes, its own logits may change, and no others.

        Raises:
            UserError: If others do.
        """
        first, second = (self.rows[i].input_ids[:8] for i in (0, -1))
        changed = first.copy()
        changed[-1] = next(token for token in (*first, *second, *range(2)) if token != first[-1])
        last, two = len(first) - 1, self.is_packed

        def logits(ids: np.ndarray) -> Tensor:
            rows = [ids, second] if two else [ids]
            positions = np.concatenate([np.arange(len(row)) for row in rows])
            joined = np.concatenate(rows)
            pair = [Block(joined, joined, positions)] * 2  # some kernels tell documents apart in a single row alone
            return model(**self.inputs(pair)).logits.float()

        change = (logits(changed) - logits(first)).abs().amax((0, -1))
        own, later = change[last], change[last + 1 : len(first) + len(second)]
        if (change[:last] > LEAK * own).any():
            raise UserError(
                "the model's tokens attend to later ones; give a decoder that was trained to continue texts"
            )
        if two and (later > LEAK * own).any():
            raise UserError(
                "the model does not keep the documents of a block apart; pass --set data.packing=false, which gives "
                "each a row of its own"
            )
