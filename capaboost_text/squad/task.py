"""SQuAD for the training loop: loss, and exact match and F1 on its splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from capaboost_text.encode import pad
from capaboost_text.encoder_task import EncoderTask
from capaboost_text.squad.answers import Prediction, predict
from capaboost_text.squad.data import Question, find_source
from capaboost_text.squad.metrics import evaluate
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


@dataclass(frozen=True)
class QuestionSplit:
    """A split to answer: questions, and their windows with offsets."""

    questions: Sequence[Question]
    windows: Sequence[Window]


class QuestionAnswering(EncoderTask[Window]):
    """Contexts in windows, to the first and last token of the answer.

    On v2.0, "no answer" is the answer where its score is ahead by more than a threshold: the one that is
    best on the selection half where there is one, and else 0.

    Args:
        accelerator: Gives the device and the processes.
        dataset: `squad_v1` or `squad_v2`.
        tokenizer: The model's.
        train: Windows to train on.
        selection: What an epoch is selected on, if any is.
        test: What is tested on.
        batch_size: Windows of one optimizer step, over all processes.
        seed: Of the order of the windows.
    """

    unit = "windows"

    def __init__(
        self,
        accelerator: Accelerator,
        dataset: str,
        tokenizer: Any,
        train: Sequence[Window],
        selection: QuestionSplit | None,
        test: QuestionSplit,
        batch_size: int,
        seed: int,
    ):
        super().__init__(accelerator, tokenizer, train, batch_size, seed)
        self.dataset, self.selection, self.test_split = dataset, selection, test

    def contents(self) -> Iterator[np.ndarray]:
        """Token ids, the positions of the answers, and the questions to select on."""
        yield from super().contents()
        yield np.array([(window.start, window.end) for window in self.rows])
        for question in self.selection.questions if self.selection else ():
            yield np.frombuffer(repr(question).encode(), np.uint8)

    def evaluated(self) -> Iterator[Sequence[Window]]:
        yield from (split.windows for split in (self.selection, self.test_split) if split)

    def loss(self, model: nn.Module, batch: np.ndarray) -> Tensor:
        """Mean of the cross-entropies of the answer's first and of its last token."""
        inputs = self.to_device(collate([self.rows[i] for i in batch], self.tokenizer, self.multiple))
        starts, ends = inputs.pop("start_positions"), inputs.pop("end_positions")
        output, padding = model(**inputs), inputs["attention_mask"] == 0
        # Padding cannot hold an answer: what a window costs must not depend on its neighbours' lengths.
        start, end = (x.float().masked_fill(padding, -torch.inf) for x in (output.start_logits, output.end_logits))
        return (F.cross_entropy(start, starts) + F.cross_entropy(end, ends)) / 2

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Exact match and F1 on the selection half, if there is one."""
        if self.selection is None:
            return {}
        report = self._report(model, self.selection, "selection", 0.0)
        # On v2.0 what the best threshold reaches, since the test half gets that threshold.
        return {f"selection_{key}": report.get(f"best_{key}", report[key]) for key in ("exact", "f1")}

    def test(self, model: nn.Module) -> dict[str, float]:
        """All that the official script reports on the test questions, and the threshold used."""
        if not find_source(self.dataset).has_null:
            return self._report(model, self.test_split, "test", 0.0)
        threshold = 0.0
        if self.selection is not None:
            threshold = self._report(model, self.selection, "threshold", 0.0)["best_f1_thresh"]
        return self._report(model, self.test_split, "test", threshold) | {"null_threshold": threshold}

    def _report(self, model: nn.Module, split: QuestionSplit, title: str, threshold: float) -> dict[str, float]:
        predictions = self._predict(model, split, title)
        answers = {prediction.id: prediction.text for prediction in predictions}
        null = {p.id: p.null_gap for p in predictions} if find_source(self.dataset).has_null else None
        return evaluate(split.questions, answers, self.dataset, null, threshold)

    @torch.no_grad()
    def _predict(self, model: nn.Module, split: QuestionSplit, title: str) -> list[Prediction]:
        longest, left = max(map(len, split.windows)), self.tokenizer.padding_side == "left"
        found = torch.zeros(2, len(split.windows), longest, device=self.device)
        for batch in self.in_batches(split.windows, title):
            output = model(**self.inputs([split.windows[i] for i in batch]))
            logits = torch.stack((output.start_logits, output.end_logits)).float()
            logits = logits[..., -longest:] if left else logits[..., :longest]
            width = logits.shape[-1]
            columns = slice(longest - width, None) if left else slice(width)
            found[:, torch.from_numpy(batch).to(self.device), columns] = logits
        tables = self.sum_over_processes(found).cpu().numpy()
        starts, ends = (strip_padding(table, split.windows, self.tokenizer.padding_side) for table in tables)
        return predict(split.questions, split.windows, starts, ends)
