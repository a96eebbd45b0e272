"""Kernels that a training step launches on a GPU, the bytes they move and their arithmetic, counted without a GPU.

A step is forward, backward and fused AdamW under bf16 autocast, on fake CUDA tensors. Every operator that computes is
one launch; prefix sums are more. Views and empty allocations launch nothing. Bytes are those of each operator's inputs
and outputs, as if nothing stayed in a cache. Three times follow, each the least that the limits of an H100 SXM allow.
NVIDIA's datasheet gives it 3.35 TB/s and 1,979 TFLOP/s in bf16 with 2:4 sparsity, which is 989 without; a launch takes
the host 5 to 20 microseconds (PyTorch's Holistic Trace Analysis, docs/source/features/cuda_kernel_launch_stats.rst at
0c2146a), here 5.

  launches    launches times the time of one, which the host needs
  memory      bytes over the bandwidth
  arithmetic  floating-point operations of the products over their peak rate

A kernel takes the larger of its memory's and its arithmetic's time; a step is bound by the host if its launches take
longer than the sum of that over its kernels, else by the larger of memory and arithmetic.

Examples:
  python -m benchmarks.launches
  python -m benchmarks.launches --model roberta-base --batch 8
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.command import Measured, finish, make_bare_parser, run_command
from benchmarks.fake_cuda import autocast, backward, fake_cuda
from benchmarks.models import CLASSES, WORKLOADS, Workload, loss_of
from benchmarks.peers import build_peer, check_peers
from benchmarks.timing import Pair
from capaboost_core import UserError

DEFAULT = ("floor", "capaboost-d1", "capaboost-d2", "capaboost-d4", "capaboost-d8", "peft")
PAIRS = [
    Pair("capaboost-d2", "peft", high=1.0),
    Pair("capaboost-d2", "floor"),
    Pair("capaboost-d8", "capaboost-d1"),
    Pair("peft", "floor"),
    *(Pair("capaboost-d2", name, figure="bytes_moved") for name in ("peft", "floor")),
]
BANDWIDTH, PEAK, LAUNCH = 3.35e12, 1979e12 / 2, 5e-6
NOTHING = {"aten::_unsafe_view", "aten::detach", "aten::empty", "aten::empty_like", "aten::new_empty", "prim::device"}
SEVERAL = {"aten::cumsum": 3, "aten::masked_scatter_": 3}  # a scan is two kernels, with one before or after it
IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm}  # as torch's table of operations names them
SETS = {"aten::copy_", "aten::fill_", "aten::zero_"}  # their first operand is not read


@dataclass
class Count(TorchDispatchMode):
    """Counts what is computed within it."""

    launches: int = 0
    bytes_moved: int = 0
    multiply_adds: int = 0
    device_seconds: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        if not (func.is_view or name in NOTHING):
            moved, products = _moved(func, args, kwargs, out), _multiply_adds(func, args, kwargs, out)
            self.launches += SEVERAL.get(name, 1)
            self.bytes_moved += moved
            self.multiply_adds += products
            self.device_seconds += max(moved / BANDWIDTH, 2 * products / PEAK)
        return out

    def figures(self) -> dict[str, Any]:
        """Bytes, multiply-adds, and the times in milliseconds with what is the longest."""
        host, memory = self.launches * LAUNCH, self.bytes_moved / BANDWIDTH
        arithmetic = 2 * self.multiply_adds / PEAK
        device = "memory" if memory > arithmetic else "arithmetic"
        return {
            "bytes_moved": self.bytes_moved,
            "launch_ms": 1e3 * host,
            "memory_ms": 1e3 * memory,
            "arithmetic_ms": 1e3 * arithmetic,
            "device_ms": 1e3 * self.device_seconds,
            "bound": "launches" if host > self.device_seconds else device,
        }


def _moved(func, args: tuple, kwargs: dict, out: object) -> int:
    """Bytes read and written; an operand that is changed in place is both."""
    changed = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    read = tree_leaves((args[1:] if func._schema.name in SETS else args, kwargs))
    held = {id(leaf) for leaf in tree_leaves(changed)}
    written = [*tree_leaves(changed), *(leaf for leaf in tree_leaves(out) if id(leaf) not in held)]
    return sum(_bytes(leaf) for leaf in (*read, *written) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements: an expanded dimension is one."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def _multiply_adds(func, args: tuple, kwargs: dict, out: object) -> int:
    packet = IN_PLACE.get(func.overloadpacket, func.overloadpacket)
    formula = flop_registry.get(packet)
    return formula(*args, **kwargs, out_val=out) // 2 if formula else 0


def count_step(model: nn.Module, workload: Workload, batch: int) -> Count:
    """Count one step of a model, when the optimizer has its state."""
    with fake_cuda():
        model = model.train().to("cuda")
        inputs, labels = workload.inputs(batch).to("cuda"), torch.randint(CLASSES, (batch,)).to("cuda")
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4, fused=True)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        with Count() as count:
            with autocast(torch.bfloat16):
                loss = loss_of(model, inputs, labels)
            backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return count


def main(arguments: list[str] | None = None) -> None:
    parser = make_bare_parser(__doc__)
    add = parser.add_argument
    add("--model", choices=WORKLOADS, default="vit-base", help="default: vit-base")
    add("--batch", type=int, default=64, metavar="N", help="default: 64")
    add("--rank", type=int, default=8, metavar="R", help="default: 8")
    add("--peers", nargs="+", default=list(DEFAULT), metavar="PEER", help=f"default: {' '.join(DEFAULT)}")
    options = parser.parse_args(arguments)
    for name in ("batch", "rank"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; type 1 or more")
    check_peers(options.peers)
    if options.quick:
        options.model, options.batch = f"tiny-{options.model.partition('-')[0]}", 2
    workload = WORKLOADS[options.model]
    base = workload.create()
    counts = {
        name: count_step(build_peer(name, base, workload, options.rank).model, workload, options.batch)
        for name in options.peers
    }
    settings = {name: getattr(options, name) for name in ("model", "batch", "rank")} | {"precision": "bf16"}
    values = {name: [count.launches] for name, count in counts.items()}
    details = {name: count.figures() for name, count in counts.items()}
    measured = Measured("launches", options.model, "launches", values, details, PAIRS, settings)
    finish(options, torch.device("cpu"), measured)


if __name__ == "__main__":
    sys.exit(run_command(main))
