"""What the benchmark commands share: flags, the device, result files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import markdown
from benchmarks.timing import Pair, Repeats, compare, spread
from capaboost.training.result import device_name, git_state, library_versions
from capaboost_core import UserError
from capaboost_core.files import write_atomically

RESULTS, QUICK_RESULTS = Path("benchmarks/results"), Path("runs/benchmarks")


def make_bare_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of a command that writes a result file."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help=f"where the JSON file goes (default: {RESULTS})")
    parser.add_argument("--quick", action="store_true", help=f"a smoke run at a tiny size, into {QUICK_RESULTS}")
    return parser


def make_parser(
    description: str | None, repeats: int, warmups: int = 1, minutes: float = 10
) -> argparse.ArgumentParser:
    """The flags that every benchmark of times has, with its own defaults."""
    parser = make_bare_parser(description)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--threads", type=int, metavar="N", help="of torch on the CPU (default: torch's own choice)")
    add("--repeats", type=int, default=repeats, metavar="N", help=f"rounds over all peers (default: {repeats})")
    add("--warmups", type=int, default=warmups, metavar="N", help=f"rounds not counted (default: {warmups})")
    add("--minutes", type=float, default=minutes, metavar="M", help=f"time limit of all rounds (default: {minutes:g})")
    add("--seed", type=int, default=0, metavar="N", help="of weights, inputs and the order of peers")
    return parser


def prepare(options: argparse.Namespace) -> torch.device:
    """Check the shared flags, apply threads, seed and `--quick`, choose the device.

    Raises:
        UserError: If a flag is out of range, or CUDA is wanted and not there.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here; pass --device cpu")
    for name, least in (("repeats", 1), ("warmups", 0), ("minutes", 0), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; type {least} or more")
    if options.quick:
        options.repeats, options.warmups = 2, 1
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def repeats_of(options: argparse.Namespace) -> Repeats:
    return Repeats(options.repeats, options.warmups, options.seed, options.minutes)


@dataclass(frozen=True)
class Measured:
    """The measurements of a benchmark.

    Attributes:
        benchmark: `step`, `inference` and so on.
        variant: What distinguishes this file from others of the benchmark, such as `vit-base`.
        unit: Of the values.
        values: One list a peer, in the order of the repeats.
        details: Further figures of a peer, by name.
        pairs: Ratios to report; a pair is left out if one of its peers lacks its figure.
        settings: What was measured.
        plots: What `capaboost plots` is to draw of it.
    """

    benchmark: str
    variant: str
    unit: str
    values: Mapping[str, Sequence[float]]
    details: Mapping[str, Mapping[str, Any]]
    pairs: Sequence[Pair]
    settings: Mapping[str, Any]
    plots: tuple[str, ...] = ()


def finish(options: argparse.Namespace, device: torch.device, measured: Measured) -> Path:
    """Write the result file of one command atomically, and print its tables."""
    peers = {n: {**spread(v), **measured.details.get(n, {}), "values": v} for n, v in measured.values.items()}
    seeded = {"seed": options.seed} if "seed" in options else {}  # what is only counted has none
    shared = {**seeded, "repeats": min(map(len, measured.values.values()))}
    result = {
        "benchmark": measured.benchmark,
        "settings": {**measured.settings, **shared},
        "unit": measured.unit,
        "plots": measured.plots,
        "peers": peers,
        "ratios": [
            compare(pair, peers, bounded=not options.quick)
            for pair in measured.pairs
            if all((pair.figure or "values") in peers.get(name, {}) for name in (pair.of, pair.to))
        ],
        **_environment(device),
    }
    folder = options.results or (QUICK_RESULTS if options.quick else RESULTS)
    machine = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", device_name(device).lower())
    allocator = "malloc" if result["allocator"] else ""  # environment variables set the allocator
    path = folder / f"{'-'.join(filter(None, (measured.benchmark, measured.variant, machine, allocator)))}.json"
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    print(f"\n{markdown(result)}\nresult: {path}")
    return path


def _environment(device: torch.device) -> dict[str, Any]:
    peft = metadata.version("peft") if find_spec("peft") else None
    return {
        "device": device_name(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "allocator": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "versions": {**library_versions(), "peft": peft, "cuda": torch.version.cuda},
        "git": git_state(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def _processor() -> str:
    """The processor's model, if Linux reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def run_command(command: Callable[[list[str] | None], object], arguments: list[str] | None = None) -> int:
    """Exit status of a command: a wrong input is one line on the error stream and status 2."""
    try:
        command(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0
