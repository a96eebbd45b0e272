"""A position within an epoch; resuming from it is bit-identical."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor


@dataclass
class Position:
    """How far an epoch is.

    Attributes:
        step: Optimizer steps done in it.
        seconds: Time they took.
        processes: For each process its random streams, and its part of the loss summed over the steps.
    """

    step: int
    seconds: float
    processes: list[dict[str, Any]]

    def restore(self, process: int, device: torch.device) -> Tensor:
        """Set the process's random streams, and return its part of the loss."""
        mine = self.processes[process]
        random.setstate(mine["python"])
        np.random.set_state(_numpy_state(mine))
        torch.set_rng_state(mine["torch"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(mine["device"], device)
        return mine["loss"].to(device)


def start_streams(seed: int, epoch: int, process: int) -> None:
    """Start all random streams of an epoch anew, so that a checkpoint between epochs need not hold them."""
    set_seed(int(np.random.SeedSequence((seed, epoch, process)).generate_state(1)[0]))


def here(loss: Tensor) -> dict[str, Any]:
    """This process's part of a position."""
    _, keys, *rest = np.random.get_state()
    device = loss.device
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "loss": loss.cpu(),
    }


def try_streams(process: dict[str, Any]) -> None:
    """Check that a process's random streams can be restored; raises what setting them raises."""
    random.Random().setstate(process["python"])
    np.random.RandomState().set_state(_numpy_state(process))
    torch.Generator().set_state(process["torch"])


def _numpy_state(process: dict[str, Any]) -> tuple:
    keys, *rest = process["numpy"]
    return ("MT19937", keys.numpy().astype(np.uint32), *rest)
