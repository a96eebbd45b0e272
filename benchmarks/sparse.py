"""2:4 masks through torch's semi-structured sparse kernels, compared with dense products of the same factors.

With 2:4 masks the concatenated factors A (d*r, in) and B (out, d*r) keep 2 of each 4 entries along the
dimension that their product sums over, which is what sparse tensor cores take. The merged weight
W + B A is dense, so that only unmerged adapters can gain.

Examples:
  python -m benchmarks.sparse
  python -m benchmarks.sparse --rank 64 --width 4096
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from benchmarks.command import Measured, finish, make_parser, prepare, repeats_of, run_command
from benchmarks.timing import Pair, Stopwatch, interleave
from capaboost.report.peak_memory import peak_bytes
from capaboost_core import UserError
from capaboost_core.methods.lora import LoRA
from capaboost_core.sharing.masks import mask_bits

PAIRS = [
    Pair("increment, sparse", "increment, dense"),
    Pair("frozen layer and increment, sparse", "frozen layer and increment, dense"),
    Pair("frozen layer and increment, dense", "frozen layer, or merged"),
]


def factors(rank: int, num_tied: int, width: int) -> tuple[Tensor, Tensor]:
    """Concatenated 2:4 factors A (d*r, width) and B (width, d*r) of random values."""
    config = LoRA(r=rank, num_tied=num_tied, mask="nm", n=2, m=4)
    copies = []
    for name, shape in (("A", (rank, width)), ("B", (width, rank))):
        bits, shifts = torch.from_numpy(mask_bits(config, "layer", name, shape)), torch.arange(num_tied)
        masks = (bits >> shifts.view(-1, 1, 1)) & 1
        copies.append(torch.randn(shape) * masks)
    a, b = copies
    return a.flatten(0, 1), b.transpose(0, 1).flatten(1)


def peers(a: Tensor, b: Tensor, x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The products to compare, as closures over bf16 tensors on the device."""
    sparse_a, sparse_b = to_sparse_semi_structured(a), to_sparse_semi_structured(b)
    return {
        "frozen layer, or merged": lambda: F.linear(x, weight),
        "increment, dense": lambda: F.linear(F.linear(x, a), b),
        "increment, sparse": lambda: F.linear(F.linear(x, sparse_a), sparse_b),
        "frozen layer and increment, dense": lambda: F.linear(x, weight) + F.linear(F.linear(x, a), b),
        "frozen layer and increment, sparse": lambda: F.linear(x, weight) + F.linear(F.linear(x, sparse_a), sparse_b),
    }


def check_device(device: torch.device) -> None:
    """Refuse a device without sparse tensor cores.

    Raises:
        UserError: With what is needed.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(
            "2:4 products need an NVIDIA GPU with sparse tensor cores (compute capability 8.0 or later), and there "
            "is none here; on other devices 2:4 masks run as any mask does, at dense speed"
        )


def check_sizes(rank: int, num_tied: int, width: int) -> None:
    """Refuse sizes that the kernels do not take, or for which there are no masks.

    Raises:
        UserError: With sizes that work.
    """
    if rank % 4 or (rank * num_tied) % 64 or width % 64:
        raise UserError(
            f"--rank {rank} --num-tied {num_tied} --width {width}: the kernels need multiples of 64 for rank * "
            "num-tied and width, and 2:4 masks a rank of a multiple of 4; type --rank 32 --num-tied 2 --width 768"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=30, warmups=3)
    parser.add_argument("--rank", type=int, default=32, metavar="R", help="of one module (default: 32)")
    parser.add_argument("--num-tied", type=int, default=2, metavar="D", help="default: 2")
    parser.add_argument("--width", type=int, default=768, metavar="N", help="of the layer (default: 768)")
    parser.add_argument("--rows", type=int, default=64 * 197, metavar="N", help="tokens (default: 12608)")
    options = parser.parse_args(arguments)
    device = prepare(options)
    check_device(device)
    check_sizes(options.rank, options.num_tied, options.width)
    bf16: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    a, b = (factor.to(**bf16) for factor in factors(options.rank, options.num_tied, options.width))
    x, weight = torch.randn(options.rows, options.width, **bf16), torch.randn(options.width, options.width, **bf16)
    with torch.no_grad():
        works = peers(a, b, x, weight)
        values = interleave({name: Stopwatch(work, device) for name, work in works.items()}, repeats_of(options))
        details = {name: {"peak_bytes": peak_bytes(work, device)} for name, work in works.items()}
    settings = {name: getattr(options, name) for name in ("rank", "num_tied", "width", "rows")}
    settings["precision"] = "bf16"
    variant = f"r{options.rank}-width{options.width}"
    finish(options, device, Measured("sparse", variant, "s", values, details, PAIRS, settings))


if __name__ == "__main__":
    sys.exit(run_command(main))
