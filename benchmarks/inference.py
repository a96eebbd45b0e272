"""A forward pass without gradients, adapters beside the frozen weights or merged into them.

Examples:
  python -m benchmarks.inference
  python -m benchmarks.inference --model vit-small --batch 16
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from benchmarks.command import Measured, finish, repeats_of, run_command
from benchmarks.model_command import Setup, set_up
from benchmarks.models import logits_of
from benchmarks.peers import Peer
from benchmarks.timing import Pair, Stopwatch, interleave
from capaboost.report.peak_memory import peak_bytes

DEFAULT = (
    "base",
    "capaboost-d1",
    "capaboost-d2",
    "capaboost-d4",
    "capaboost-d8",
    "looped-d2",
    "peft",
    "peft-2r",
    "capaboost-d2-merged",
    "peft-merged",
)
PAIRS = [
    Pair("capaboost-d2-merged", "base", low=0.99, high=1.01),
    Pair("peft-merged", "base"),
    Pair("capaboost-d2", "peft", high=1.00),
    Pair("capaboost-d2", "peft-2r"),
    Pair("capaboost-d2", "looped-d2"),
    Pair("capaboost-d8", "capaboost-d1"),
    Pair("capaboost-d2", "base"),
]


def make_forward(peer: Peer, setup: Setup) -> Callable[[], None]:
    model = setup.callable(peer.model.eval())

    @torch.inference_mode()
    def forward() -> None:
        with setup.precision():
            logits_of(model, setup.inputs)

    return forward


def main(arguments: list[str] | None = None) -> None:
    setup = set_up(__doc__, DEFAULT, arguments)
    forwards = {name: make_forward(peer, setup) for name, peer in setup.peers()}
    measures = {name: Stopwatch(forward, setup.device) for name, forward in forwards.items()}
    values = interleave(measures, repeats_of(setup.options))
    details = {name: {"peak_bytes": peak_bytes(forward, setup.device)} for name, forward in forwards.items()}
    measured = Measured("inference", setup.variant, "s", values, details, PAIRS, setup.settings, ("peers",))
    finish(setup.options, setup.device, measured)


if __name__ == "__main__":
    sys.exit(run_command(main))
