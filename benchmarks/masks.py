"""How long it takes to regenerate all masks of an adapter from their seed, and what an adapter holds in memory.

Examples:
  python -m benchmarks.masks
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.command import Measured, finish, make_parser, prepare, repeats_of, run_command
from benchmarks.timing import interleave
from capaboost_core import Plan, Target, inject
from capaboost_core.injection import adapted_layers
from capaboost_core.methods.lora import LoRA
from capaboost_core.sharing.masks import mask_bits

Shape = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """The adapted layers of a model: `layers` of one block as (out, in), in `blocks` blocks, at rank `r`."""

    blocks: int
    layers: tuple[Shape, ...]
    r: int
    num_tied: int

    @property
    def config(self) -> LoRA:
        return LoRA(r=self.r, num_tied=self.num_tied)

    @property
    def entries(self) -> int:
        """Entries of the dense weights A (r, in) and B (out, r) of all layers."""
        return self.blocks * sum(self.r * (rows + columns) for rows, columns in self.layers)

    def weights(self) -> list[tuple[str, str, Shape]]:
        """Path, name and shape of every weight that has masks."""
        return [
            (f"blocks.{block}.{index}", name, shape)
            for block in range(self.blocks)
            for index, (rows, columns) in enumerate(self.layers)
            for name, shape in (("A", (self.r, columns)), ("B", (rows, self.r)))
        ]


VIT_BASE = ((768, 768),) * 2  # q and v
DECODER_7B = ((4096, 4096),) * 4 + ((11008, 4096),) * 2 + ((4096, 11008),)  # q, k, v, o, gate, up, down
CASES = {
    "ViT-B/16, q and v, r = 8, d = 2": Case(12, VIT_BASE, 8, 2),
    "ViT-B/16, q and v, r = 8, d = 8": Case(12, VIT_BASE, 8, 8),
    "7B decoder, all linear layers, r = 64, d = 2": Case(32, DECODER_7B, 64, 2),
}
QUICK = {"tiny, d = 2": Case(2, ((32, 32),), 4, 2), "tiny, d = 8": Case(2, ((32, 32),), 4, 8)}


def make_masks(case: Case) -> Callable[[], float]:
    """A measure: seconds for the masks of every weight, each of which is dropped again."""

    def measure() -> float:
        begun = time.perf_counter()
        for path, name, shape in case.weights():
            mask_bits(case.config, path, name, shape)
        return time.perf_counter() - begun

    return measure


def bytes_per_entry(case: Case) -> float:
    """Bytes of parameters and buffers that one block's adapters hold, for each entry of their dense weights."""
    with torch.device("meta"):
        linears = [nn.Linear(columns, rows, bias=False) for rows, columns in case.layers]
    block = nn.Sequential(*(linear.to_empty(device="cpu") for linear in linears))
    inject(block, case.config, Plan(tuple(Target(str(index)) for index in range(len(linears)))))
    held = [t for layer in adapted_layers(block) for t in (*layer.own_parameters().values(), *layer.buffers())]
    return sum(tensor.nbytes for tensor in held) * case.blocks / case.entries


def main(arguments: list[str] | None = None) -> None:
    options = make_parser(__doc__, repeats=5, minutes=5).parse_args(arguments)
    options.device = "cpu"  # masks are made by NumPy, on any device
    device = prepare(options)
    cases = QUICK if options.quick else CASES
    values = interleave({name: make_masks(case) for name, case in cases.items()}, repeats_of(options))
    details = {n: {"entries": c.entries, "bytes_per_entry": bytes_per_entry(c)} for n, c in cases.items()}
    finish(options, device, Measured("masks", "", "s", values, details, (), {"density": 0.5}))


if __name__ == "__main__":
    sys.exit(run_command(main))
