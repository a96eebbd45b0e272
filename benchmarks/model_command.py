"""Flags and set-up of the two benchmarks that compare models: a training step, and inference."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.command import make_parser, prepare
from benchmarks.models import CLASSES, WORKLOADS
from benchmarks.peers import PEERS, Peer, build_peer, check_peers
from capaboost_core import UserError

# Each compiled peer is a specialisation of the same code; torch's own limit is meant for one model.
COMPILED_PEERS = 8 * len(PEERS)
COMPILED = {"default": "compiled", "reduce-overhead": "graphs"}  # modes of torch.compile, and what results call them


@dataclass(frozen=True)
class Setup:
    """One batch on the device, the peers to build, and the precision they compute in."""

    options: argparse.Namespace
    device: torch.device
    inputs: Tensor
    labels: Tensor
    default_peers: tuple[str, ...]

    def precision(self) -> AbstractContextManager:
        """Automatic mixed precision, or none with fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def peers(self) -> Iterator[tuple[str, Peer]]:
        """The peers one by one, over one frozen model."""
        workload = WORKLOADS[self.options.model]
        base = workload.create().to(self.device)
        for name in tqdm(self.options.peers, "building peers", leave=False, dynamic_ncols=True):
            peer = build_peer(name, base, workload, self.options.rank)
            yield name, Peer(peer.model.to(self.device), peer.head, peer.file_tensors)

    def callable(self, model: nn.Module) -> Callable[..., Any]:
        """The model, compiled if requested."""
        return torch.compile(model, mode=self.options.compile) if self.options.compile else model

    @property
    def variant(self) -> str:
        """The part of the file's name for the settings; usual ones are left out."""
        options, (batch, precision) = self.options, usual(self.device)
        parts = {
            options.model: True,
            COMPILED.get(options.compile): options.compile is not None,
            options.precision: options.precision != precision,
            f"batch{options.batch}": options.batch != batch and not options.quick,
            f"r{options.rank}": options.rank != 8,
            "some-peers": set(options.peers) != set(self.default_peers),
        }
        return "-".join(part for part, shown in parts.items() if shown)

    @property
    def settings(self) -> dict[str, Any]:
        """What was measured, for the result file."""
        mode = COMPILED.get(self.options.compile, "eager")
        names = ("model", "batch", "rank", "precision")
        return {**{name: getattr(self.options, name) for name in names}, "mode": mode}


def usual(device: torch.device) -> tuple[int, str]:
    """Default batch and precision."""
    return (64, "bf16") if device.type == "cuda" else (8, "fp32")


def set_up(
    description: str | None, default_peers: tuple[str, ...], arguments: list[str] | None, repeats: int = 7
) -> Setup:
    """Read and check the flags, make the batch.

    Raises:
        UserError: If a flag is wrong.
    """
    parser = make_parser(description, repeats)
    add = parser.add_argument
    add("--model", choices=WORKLOADS, default="vit-base", help="default: vit-base")
    add("--batch", type=int, metavar="N", help="default: 8 on the CPU, 64 on CUDA")
    add("--rank", type=int, default=8, metavar="R", help="default: 8")
    add("--precision", choices=("fp32", "bf16"), help="default: fp32 on the CPU, bf16 autocast on CUDA")
    add(
        "--compile",
        nargs="?",
        const="default",
        choices=COMPILED,
        metavar="MODE",
        help="through torch.compile, whose time is part of the warm-up; reduce-overhead: as CUDA graphs",
    )
    add("--peers", nargs="+", default=list(default_peers), metavar="PEER", help=f"some of: {', '.join(PEERS)}")
    options = parser.parse_args(arguments)
    device = prepare(options)
    for name in ("batch", "rank"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; type 1 or more")
    check_peers(options.peers)
    if options.quick:
        options.model, options.batch = f"tiny-{options.model.partition('-')[0].removeprefix('tiny')}", 2
    batch, precision = usual(device)
    options.batch, options.precision = options.batch or batch, options.precision or precision
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = COMPILED_PEERS
    inputs = WORKLOADS[options.model].inputs(options.batch)
    labels = torch.randint(CLASSES, (options.batch,), device=device)
    return Setup(options, device, inputs.to(device), labels, default_peers)
