"""Classification and regression of texts for the training loop: loss, and the task's metrics on its splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from capaboost_core.task import write_confusion
from capaboost_text.encode import Encoded, Example, encode
from capaboost_text.encoder_task import EncoderTask
from capaboost_text.glue.data import Splits
from capaboost_text.glue.tasks import TextTask


@dataclass(frozen=True)
class EncodedSplit:
    """A split as tokens and labels."""

    rows: list[Encoded]
    labels: np.ndarray


class Classification(EncoderTask[Encoded]):
    """Texts or pairs to classes, or to a number.

    Args:
        accelerator: Gives the device and the processes.
        task: Metrics, and whether it is a regression.
        tokenizer: The model's.
        splits: What a protocol trains, selects and tests on.
        max_length: Tokens of the longest row.
        batch_size: Of one optimizer step, over all processes.
        seed: Of the order of the rows.
    """

    unit = "sentences"

    def __init__(
        self,
        accelerator: Accelerator,
        task: TextTask,
        tokenizer: Any,
        splits: Splits,
        max_length: int,
        batch_size: int,
        seed: int,
    ):
        def encoded(examples: Sequence[Example]) -> EncodedSplit:
            rows = encode(examples, tokenizer, max_length, accelerator.is_main_process)
            labels = np.array([example.label for example in examples])
            return EncodedSplit(rows, labels.astype(np.float32 if task.regression else np.int64))

        train = encoded(splits.train)
        super().__init__(accelerator, tokenizer, train.rows, batch_size, seed)
        self.text_task, self.labels = task, torch.from_numpy(train.labels).to(self.device)
        self.selection = encoded(splits.selection) if splits.selection else None
        self.tests = {"": encoded(splits.test)}
        if splits.mismatched:
            self.tests["mismatched_"] = encoded(splits.mismatched)

    def contents(self) -> Iterator[np.ndarray]:
        """Token ids and labels."""
        yield from super().contents()
        yield self.labels.cpu().numpy()
        if self.selection:
            yield from (row.input_ids for row in self.selection.rows)
            yield self.selection.labels

    def evaluated(self) -> Iterator[Sequence[Encoded]]:
        yield from ([self.selection.rows] if self.selection else [])
        yield from (split.rows for split in self.tests.values())

    def loss(self, model: nn.Module, batch: np.ndarray) -> Tensor:
        """Cross-entropy, or the squared error of a regression."""
        logits = model(**self.inputs([self.rows[i] for i in batch])).logits.float()
        return self._loss(logits, self.labels[torch.from_numpy(batch).to(self.device)])

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(-1), labels) if self.text_task.regression else F.cross_entropy(logits, labels)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The task's metrics and its mean loss on the selection rows, if there are any."""
        return self._score(model, self.selection, "selection_") if self.selection else {}

    def test(self, model: nn.Module) -> dict[str, float]:
        """The task's metrics on the test rows, for MNLI of both dev splits."""
        self.confusion = None
        scores = [self._score(model, split, prefix) for prefix, split in self.tests.items()]
        return {name: value for score in scores for name, value in score.items()}

    def write_report(self, folder: Path) -> None:
        """`confusion.csv` of the test rows of a classification."""
        if self.confusion is not None:
            write_confusion(folder, self.text_task.labels, self.confusion.tolist())

    def _score(self, model: nn.Module, split: EncodedSplit, prefix: str) -> dict[str, float]:
        width = max(1, len(self.text_task.labels))
        logits = self.logits(model, split.rows, width, prefix.rstrip("_") or "test")
        predictions = logits[:, 0] if self.text_task.regression else logits.argmax(axis=1)
        if not (self.text_task.regression or prefix):
            pairs = split.labels * width + predictions
            self.confusion = np.bincount(pairs, minlength=width * width).reshape(width, width)
        scores = self.text_task.score(predictions, split.labels)
        if prefix == "selection_":
            scores = scores | {"loss": self._loss(torch.from_numpy(logits), torch.from_numpy(split.labels)).item()}
        return {f"{prefix}{name}": value for name, value in scores.items()}
