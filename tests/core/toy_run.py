"""A small run of the training loop; as a script, one process of a distributed one.

python -m tests.core.toy_run FOLDER [--resume] [--dropout] [STEP RANK]: at STEP, the process RANK gets SIGTERM.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from capaboost.exit_code import exit_code_of
from capaboost.training.loop import FitResult, fit
from capaboost.training.optimize import make_accelerator
from capaboost.training.settings import TrainSection

EXAMPLES = 23  # with batches of 5, slices are uneven, and the last batch of 3 is shorter than 4 slices


def settings(**changes) -> TrainSection:
    values = dict(epochs=4, batch_size=5, lr=0.05, warmup_ratio=0.25, warmup_lr=0.0, min_lr=0.0, max_grad_norm=1.0)
    values["mixed_precision"] = "no"  # the same on every machine
    return TrainSection(**values | changes)


def model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))
    layers[0].requires_grad_(False)
    return layers


class Toy:
    unit = "rows"
    examples = EXAMPLES

    def __init__(self, device: torch.device, batch_size: int):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(EXAMPLES, 6, generator=generator).to(device)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 1).long()
        self.batch_size, self.evaluations = batch_size, 0

    def batches(self, epoch):
        order = np.random.default_rng((0, epoch)).permutation(EXAMPLES)
        return torch.from_numpy(order).to(self.x.device).split(self.batch_size)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(self.x[batch]), self.y[batch])

    def evaluate(self, model):
        assert not model.training
        self.evaluations += 1
        return {"score": float((model(self.x).argmax(1) == self.y).float().mean())}


def signalled(step: int, number: int = signal.SIGTERM) -> type[Toy]:
    """The task, whose process gets the signal within an optimizer step, counted from 1."""

    class Signalled(Toy):
        calls = 0

        def loss(self, model, batch):
            type(self).calls += model.training  # not on the trial before the first step
            if self.calls == step and model.training:
                os.kill(os.getpid(), number)
            return super().loss(model, batch)

    return Signalled


def stopping_at(evaluation: int) -> type[Toy]:
    """The task, which breaks off in an evaluation, counted from 1."""

    class Stopping(Toy):
        def evaluate(self, model):
            if self.evaluations + 1 == evaluation:
                raise InterruptedError
            return super().evaluate(model)

    return Stopping


def run(folder: Path, task=Toy, network: nn.Module | None = None, resume=False, select_by=None, **changes):
    """Train in the folder; returns the model and the loop's result."""
    chosen, network = settings(**changes), network or model()
    accelerator = make_accelerator(chosen, folder)
    toy = task(accelerator.device, chosen.batch_size)
    fingerprint = {"train": {"lr": chosen.lr}}
    result: FitResult = fit(accelerator, network, toy, chosen, folder, fingerprint, select_by, resume)
    return network, result


def lines(folder: Path) -> list[dict]:
    """What a run wrote of its epochs."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether the weights are equal bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def main() -> None:
    folder, *more = sys.argv[1:]
    step, rank = [int(word) for word in more if word.isdecimal()] or (0, 0)
    task = signalled(2 * step) if rank == int(os.environ["RANK"]) else Toy  # two slices a step
    run(
        Path(folder),
        task,
        model(dropout=0.5 if "--dropout" in more else 0.0),
        "--resume" in more,
        gradient_accumulation_steps=2,
    )


if __name__ == "__main__":
    sys.exit(exit_code_of(main, "--resume goes on"))
