"""Run every task, method and seed of a sweep file, to the end, on what there is.

Examples:
  capaboost sweep digits --dry-run
  capaboost sweep configs/sweeps/digits.yaml --workers 2
  capaboost sweep configs/sweeps/vtab1k-paper.yaml --engine local --gpus 0,1 --workers 4
  capaboost sweep configs/sweeps/glue-propetl.yaml --engine ray --gpus-per-run 0.5
  capaboost sweep configs/sweeps/squad.yaml --engine slurm --slurm slurm_partition=gpu --slurm timeout_min=240
  capaboost sweep configs/sweeps/vtab1k-paper.yaml --shard 2/4

A run that has a result is not run again, a stopped one goes on from its checkpoint, and one that fails is recorded
and does not stop the rest; so the same command goes on, after a kill and on another machine that shares the folder.
docs/sweeps.md explains the file. `capaboost tables FOLDER` makes the tables and plots.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaboost.command_line import at_least_one, exit_code, given_path, make_parser

if TYPE_CHECKING:
    from capaboost.sweeps.sweep_file import SweepFile

ENGINES = ("local", "ray", "slurm")


def sweep_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    add(
        "file",
        type=given_path,
        metavar="FILE",
        help="the sweep, a YAML file; or the name of a shipped one, such as digits",
    )
    add("--dry-run", action="store_true", help="list every run with its estimated time, and run nothing")
    add("--output-dir", type=given_path, metavar="DIR", help="default: runs/sweeps/<name of the file>")
    add("--engine", choices=ENGINES, default="local", help="local: processes here (default); ray, slurm: a cluster")
    add("--workers", type=at_least_one, metavar="N", help="runs at a time here (default: one, or one for each GPU)")
    add("--threads", type=at_least_one, metavar="N", help="cores of a run (default: OMP_NUM_THREADS; else one for "
        "models below 10 million parameters without a GPU; else its share of this machine's)")  # fmt: skip
    add("--gpus", type=_names, metavar="I,J", help="local: the GPUs, which the workers share (default: all)")
    add("--gpus-per-run", type=_share, metavar="X", help="ray, slurm: GPUs of a run, such as 0.25 (default: 1 where "
        "there are GPUs)")  # fmt: skip
    add("--ray-address", metavar="HOST:PORT", help="of a Ray cluster (default: RAY_ADDRESS, or a new one here)")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help="a parameter of submitit's executor; may be "
        "repeated")  # fmt: skip
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="only every N-th task and method, from the I-th")
    add("--retry", action="store_true", help="run again what is recorded as failed")
    add(
        "--speed",
        type=_above_zero,
        metavar="X",
        help="--dry-run: 10^12 multiply-adds a second of the device that is meant",
    )
    return parser


def sweep(options: argparse.Namespace) -> None:
    """Check the sweep, then list it or run it."""
    from capaboost.sweeps.estimate import judged_alike, within_budget
    from capaboost.sweeps.folder import SweepFolder
    from capaboost.sweeps.sweep_file import file_of, read_sweep

    file = judged_alike(within_budget(read_sweep(file_of(options.file))))
    folder = SweepFolder((options.output_dir or Path("runs/sweeps") / options.file.stem).absolute())
    if options.dry_run:
        from capaboost.sweeps.display import list_runs

        return list_runs(file, folder, options.shard, options.speed)
    from capaboost.sweeps.driver import drive

    drive(options.file.stem, file, folder, options.shard, make_engine(options, file), options.retry)
    return None


def make_engine(options: argparse.Namespace, file: SweepFile) -> Any:
    """The engine of `--engine`.

    Raises:
        UserError: If a flag belongs to another engine.
    """
    from capaboost.sweeps.engines.local import local_engine
    from capaboost.sweeps.engines.ray import RayEngine
    from capaboost.sweeps.engines.slurm import SlurmEngine
    from capaboost_core.errors import UserError

    own = {"local": ("gpus",), "ray": ("gpus_per_run", "ray_address"), "slurm": ("gpus_per_run", "slurm")}
    for name in ("gpus", "gpus_per_run", "ray_address", "slurm"):
        if getattr(options, name) and name not in own[options.engine]:
            engines = " or ".join(engine for engine in ENGINES if name in own[engine])
            raise UserError(f"--{name.replace('_', '-')} belongs to --engine {engines}; leave it out")
    here = local_engine(file, options.workers, options.threads, options.gpus)
    per_run = options.gpus_per_run if options.gpus_per_run is not None else float(bool(here.gpus))
    if options.engine == "local":
        return here
    if options.engine == "ray":
        return RayEngine(options.ray_address, here.threads, per_run)
    return SlurmEngine(slurm_parameters(options.slurm), here.threads, per_run, here.workers)


def slurm_parameters(assignments: list[str]) -> dict[str, Any]:
    """`["timeout_min=240"]` -> `{"timeout_min": 240}`.

    Raises:
        UserError: If a text is not of this form.
    """
    from capaboost_core.errors import UserError
    from capaboost_core.settings import parse_yaml

    pairs = [assignment.partition("=") for assignment in assignments]
    for name, equals, text in pairs:
        if not (name and equals and text):
            raise UserError(f"--slurm {name + equals + text!r} is not of the form KEY=VALUE, such as timeout_min=240")
    return {name: parse_yaml(text) for name, _, text in pairs}


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N with 1 <= I <= N, such as 2/4")
    return int(part), int(parts)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GPUs, such as 0.25 or 1")
    return share


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(name.isdecimal() for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of GPUs, such as 0,1")
    return names


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = sweep_parser(prog).parse_args(arguments)
    return exit_code(lambda: sweep(options), "the same command goes on")
