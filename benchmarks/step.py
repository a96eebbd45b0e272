"""One training step: forward, backward and AdamW, CapaBoost compared with peft, the looped reference and the floor.

Examples:
  python -m benchmarks.step                                   # ViT-B/16
  python -m benchmarks.step --model roberta-base --compile
  python -m benchmarks.step --peers capaboost-d2 peft floor --repeats 30 --minutes 20
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from benchmarks.command import Measured, finish, repeats_of, run_command
from benchmarks.model_command import Setup, set_up
from benchmarks.models import loss_of
from benchmarks.peers import SIZES, Peer, sizes_of
from benchmarks.timing import Pair, Stopwatch, interleave
from capaboost.report.flops import count_flops
from capaboost.report.peak_memory import peak_bytes

DEFAULT = ("floor", "capaboost-d1", "capaboost-d2", "capaboost-d4", "capaboost-d8", "looped-d2", "peft", "peft-2r")
AIMS = {"vit-base": 0.97, "roberta-base": 1.00}  # CapaBoost over peft at the same r, fp32 on the CPU


def pairs_of(setup: Setup) -> list[Pair]:
    """The ratios to report, with their aims where the model has one."""
    aimed = setup.options.model in AIMS and setup.device.type == "cpu"
    vit_base = aimed and setup.options.model == "vit-base"
    return [
        Pair("capaboost-d2", "peft", high=AIMS[setup.options.model] if aimed else None),
        Pair("capaboost-d2", "peft-2r"),
        Pair("peft-capaboost", "capaboost-d2", high=1.02),
        Pair("capaboost-d2", "looped-d2"),
        Pair("capaboost-d2", "floor", high=1.02 if vit_base else None),
        Pair("capaboost-d8", "capaboost-d1", high=1.03 if vit_base else None),
        Pair("peft", "floor"),
        Pair("capaboost-d8", "capaboost-d1", figure="multiply_adds"),
        Pair("capaboost-d2", "floor", figure="multiply_adds"),
        Pair("capaboost-d2", "peft", figure="peak_bytes"),
        *(Pair("capaboost-d2", "peft", high=0.76, figure=figure) for figure in SIZES),
    ]


def make_step(peer: Peer, setup: Setup) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """The step of one peer, and its optimizer."""
    model = setup.callable(peer.model.train())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4, fused=True)

    def step() -> None:
        with setup.precision():
            loss = loss_of(model, setup.inputs, setup.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, optimizer


def main(arguments: list[str] | None = None) -> None:
    setup = set_up(__doc__, DEFAULT, arguments)
    peers = dict(setup.peers())
    steps = {name: make_step(peer, setup) for name, peer in peers.items()}
    values = interleave(
        {name: Stopwatch(step, setup.device) for name, (step, _) in steps.items()}, repeats_of(setup.options)
    )
    details = {
        name: {
            "multiply_adds": count_flops(peers[name].model, setup.inputs[:1], backward=True).executed,
            "peak_bytes": peak_bytes(step, setup.device),
            **sizes_of(peers[name], optimizer),
        }
        for name, (step, optimizer) in steps.items()
    }
    measured = Measured("step", setup.variant, "s", values, details, pairs_of(setup), setup.settings, ("peers",))
    finish(setup.options, setup.device, measured)


if __name__ == "__main__":
    sys.exit(run_command(main))
