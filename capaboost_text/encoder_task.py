"""What the tasks on texts share: batches of like length, padding, logits of a complete split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from capaboost_core.task import content_hash
from capaboost_text.encode import Tokens, check_fit, pad, token_batches, train_batches

TOKENS_CPU, TOKENS_GPU = 4096, 65536  # of one batch in evaluation


AnyTokens = TypeVar("AnyTokens", bound=Tokens)


class EncoderTask(Generic[AnyTokens]):
    """The part of a `capaboost_core.task.Task` that does not depend on the head.

    Args:
        accelerator: Gives the device and the processes.
        tokenizer: The model's.
        rows: The training rows.
        batch_size: Of one optimizer step, over all processes.
        seed: Of the order of the rows.
    """

    unit = "rows"

    def __init__(
        self, accelerator: Accelerator, tokenizer: Any, rows: Sequence[AnyTokens], batch_size: int, seed: int
    ):
        self.accelerator, self.tokenizer, self.device = accelerator, tokenizer, accelerator.device
        self.rows, self.lengths = rows, _lengths(rows)
        self.batch_size, self.seed, self.examples = batch_size, seed, len(rows)
        self.on_gpu = self.device.type == "cuda"
        self.multiple = 8 if self.on_gpu else 1  # tensor cores want multiples of eight
        self.tokens_at_once = TOKENS_GPU if self.on_gpu else TOKENS_CPU

    def loss(self, model: nn.Module, batch: np.ndarray) -> Tensor:
        """The mean loss of the training rows with these indices."""
        raise NotImplementedError

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """A batch as `loss` takes it, of row indices: these, unless a task adds what a slice must know."""
        return rows

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Batches of rows of like length."""
        return [self.batch(rows) for rows in train_batches(self.lengths, self.batch_size, self.seed, epoch)]

    def fingerprint(self) -> str:
        """A hash of the rows to train and select on, as tokens, and of their labels."""
        return content_hash(self.contents())

    def contents(self) -> Iterator[np.ndarray]:
        """The content that the fingerprint covers; a head adds its labels."""
        for row in self.rows:
            yield row.input_ids

    def evaluated(self) -> Iterator[Sequence[Tokens]]:
        """The splits that are only evaluated on; a head adds its own."""
        yield from ()

    def check(self, model: nn.Module) -> None:
        """What else a task asks of a model that can read its rows.

        Raises:
            UserError: If the model does not have it.
        """

    def trial(self, model: nn.Module) -> Tensor:
        """The mean loss of the longest and the shortest training row, after a forward pass over the longest and the
        shortest row of each split that is only evaluated on. Before, `check_fit` looks at every row of all splits, and
        `check` at the model.

        Raises:
            UserError: If the model cannot read a row.
        """
        splits = [self.rows, *self.evaluated()]
        check_fit(model, self.tokenizer, (row for rows in splits for row in rows))
        self.check(model)
        with torch.no_grad():
            for rows in splits[1:]:
                model(**self.inputs([rows[i] for i in _ends(rows)]))
        return self.loss(model, self.batch(_ends(self.rows)))

    def inputs(self, rows: Sequence[AnyTokens]) -> dict[str, Any]:
        """The rows as the model's padded inputs on its device."""
        return self.to_device(pad(rows, self.tokenizer, self.multiple))

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Asynchronous copies to the device."""
        if self.on_gpu:
            batch = {name: values.pin_memory() for name, values in batch.items()}
        return {name: values.to(self.device, non_blocking=self.on_gpu) for name, values in batch.items()}

    def in_batches(self, rows: Sequence[Tokens], title: str) -> Any:
        """This process's part of a split's row indices, in batches by number of tokens, under a bar."""
        mine = np.arange(len(rows))[self.accelerator.process_index :: self.accelerator.num_processes]
        batches = list(token_batches(_lengths(rows), mine, self.tokens_at_once))
        hidden = None if self.accelerator.is_main_process else True  # None: shown on a terminal only
        return tqdm(batches, title, unit=" batches", leave=False, disable=hidden, mininterval=1)

    @torch.no_grad()
    def logits(self, model: nn.Module, rows: Sequence[Tokens], width: int, title: str) -> np.ndarray:
        """Classification logits (rows, width) of a complete split, in every process."""
        found = torch.zeros(len(rows), width, device=self.device)
        for batch in self.in_batches(rows, title):
            index = torch.from_numpy(batch).to(self.device)
            found[index] = model(**self.inputs([rows[i] for i in batch])).logits.float()
        return self.sum_over_processes(found).cpu().numpy()

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sum of every process's values, in all of them."""
        return cast(Tensor, self.accelerator.reduce(values, "sum"))


def _ends(rows: Sequence[Tokens]) -> np.ndarray:
    """The indices of the shortest and the longest row."""
    return np.argsort(_lengths(rows), kind="stable")[[0, -1]]


def _lengths(rows: Sequence[Tokens]) -> np.ndarray:
    return np.array([len(row) for row in rows])
