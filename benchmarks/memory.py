"""Peak memory of a training step, and what autograd holds between forward and backward, by type and shape.

The peak is what `peak_bytes` counts beyond weights and optimizer state. Held is each storage that the forward pass
saves for the backward pass and that is no parameter or buffer of the model, once; a view counts as its whole storage.

Examples:
  python -m benchmarks.memory --precision bf16 --batch 16
  python -m benchmarks.memory --precision bf16 --batch 16 --model roberta-base
"""

from __future__ import annotations

import sys
from collections import defaultdict

import torch
from torch import Tensor, nn

from benchmarks.command import Measured, finish, repeats_of, run_command
from benchmarks.model_command import Setup, set_up
from benchmarks.models import loss_of
from benchmarks.step import make_step
from benchmarks.timing import Pair, interleave
from capaboost.report.peak_memory import peak_bytes

DEFAULT = ("floor", "capaboost-d2", "peft")
PAIRS = [Pair("capaboost-d2", "peft", high=0.97), Pair("capaboost-d2", "floor"), Pair("peft", "floor")]


def held_tensors(model: nn.Module, setup: Setup) -> list[Tensor]:
    """One of the saved tensors for each storage that the graph of a step holds, and the model does not."""
    known = {_address(tensor) for tensor in (setup.inputs, *model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _address(tensor) not in known:
            saved.setdefault(_address(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), setup.precision():
        loss_of(model, setup.inputs, setup.labels)
    return list(saved.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def by_shape(tensors: list[Tensor]) -> dict[str, dict[str, int]]:
    """Number and bytes of the storages, by type and shape of what was saved, the most bytes first."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    for tensor in tensors:
        entry = found[f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"]
        entry["count"] += 1
        entry["bytes"] += tensor.untyped_storage().nbytes()
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def main(arguments: list[str] | None = None) -> None:
    setup = set_up(__doc__, DEFAULT, arguments, repeats=1)
    peers = dict(setup.peers())
    steps = {name: make_step(peer, setup)[0] for name, peer in peers.items()}
    works = {name: lambda step=step: peak_bytes(step, setup.device) / 2**20 for name, step in steps.items()}
    values, details = interleave(works, repeats_of(setup.options)), {}
    for name, peer in peers.items():
        held = by_shape(held_tensors(peer.model, setup))
        details[name] = {"held_bytes": sum(entry["bytes"] for entry in held.values()), "held": held}
    measured = Measured("memory", setup.variant, "peak, MiB", values, details, PAIRS, setup.settings)
    finish(setup.options, setup.device, measured)


if __name__ == "__main__":
    sys.exit(run_command(main))
