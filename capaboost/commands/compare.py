"""Train several methods on one task under one budget, and print one table.

Examples:
  capaboost compare --dataset digits --methods lora,capaboost-lora --budget 30k
  capaboost compare --dataset dtd --methods lora,capaboost-lora --budget 0.22M --lr-grid 1e-3,3e-3,1e-2
  capaboost compare --task rte --methods lora,capaboost-lora,linear --seeds 42,43,44 --model roberta-base
  capaboost compare --dataset squad_v1 --methods lora,capaboost-lora --budget-percent 0.1

It is a sweep of one task (docs/sweeps.md): --lr-grid tunes the rate of each method on the rows for selection, the test
rows are looked at once for each seed, and the same command goes on after a stop. A method without a size setting,
such as linear, takes part as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaboost.budget import add_budget_flags, budget_of
from capaboost.command_line import at_least_one, exit_code, given, given_path, make_parser

if TYPE_CHECKING:
    from capaboost.sweeps.sweep_file import SweepFile

PROTOCOLS = {
    "train-vtab": "select",
    "train-glue": "propetl",
    "train-squad": "select",
}  # which select on rows of their own


def compare_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add, task = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--dataset", type=given, metavar="NAME", help="a task of train-vtab, or squad_v1 or squad_v2")
    task.add_argument("--task", type=given, metavar="NAME", help="a task of train-glue")
    add(
        "--methods",
        type=_listed,
        required=True,
        metavar="A,B,C",
        help="presets; the first is what others are compared to",
    )
    add_budget_flags(parser)
    add("--seeds", type=_whole, default=(42,), metavar="I,J", help="default: 42")
    add("--lr-grid", type=_rates, metavar="RATES", help="rates that are tried for each method, with commas between")
    add("--model", type=given, metavar="NAME", help="default: the task's own")
    add("--data-dir", type=given, metavar="DIR", help="where the task's data lie")
    add("--source", type=given, metavar="NAME", help="of images: tfds, folder, images, digits or rendered")
    add("--epochs", type=at_least_one, metavar="N", help="default: the task's own")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any setting of all runs")
    add("--workers", type=at_least_one, metavar="N", help="runs at a time (default: one, or one for each GPU)")
    add("--output-dir", type=given_path, metavar="DIR", help="default: runs/compare/<task>")
    return parser


def compare(options: argparse.Namespace) -> None:
    """Bring each method within the budget, run all, and show the table."""
    from capaboost.commands.tables import make
    from capaboost.sweeps.driver import drive
    from capaboost.sweeps.engines.local import local_engine
    from capaboost.sweeps.folder import SweepFolder

    name = options.dataset or options.task
    folder = SweepFolder((options.output_dir or Path("runs/compare") / name).absolute())
    sweep = sweep_of(options)
    drive(f"compare {name}", sweep, folder, (1, 1), local_engine(sweep, options.workers), retry=True)
    make([folder.path], options.methods[0])


def sweep_of(options: argparse.Namespace) -> SweepFile:
    """The flags as a sweep, with each method at the size that meets the budget."""
    from capaboost.sweeps.estimate import judged_alike, within_budget
    from capaboost.sweeps.sweep_file import SweepFile

    squad = (options.dataset or "").startswith("squad_")
    command = "train-glue" if options.task else "train-squad" if squad else "train-vtab"
    name = options.task or options.dataset
    values: dict[str, Any] = {
        "command": command, "tasks": [name], "methods": list(options.methods), "seeds": list(options.seeds),
        "set": _settings(options), "budget": budget_of(options), "nearest": options.nearest,
    }  # fmt: skip
    if options.lr_grid:
        values["tune"] = {"grid": {"train.lr": options.lr_grid}, "protocol": PROTOCOLS[command]}
    return judged_alike(within_budget(SweepFile.from_dict(values)))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    from capaboost.training.settings import flat, parse_assignments

    flags = {
        "model.name": options.model, "data.dir": options.data_dir, "data.source": options.source,
        "train.epochs": options.epochs,
    }  # fmt: skip
    own = {key: value for key, value in flags.items() if value is not None}
    return flat(parse_assignments(options.set)) | own


def _listed(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different presets, such as lora,capaboost-lora")
    return names


def _whole(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers, such as 42,43,44")
    return tuple(map(int, parts))


def _rates(text: str) -> list[float]:
    try:
        rates = list(dict.fromkeys(map(float, text.split(","))))
    except ValueError:
        rates = []
    if len(rates) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of two or more rates, such as 1e-3,3e-3,1e-2")
    return rates


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = compare_parser(prog).parse_args(arguments)
    return exit_code(lambda: compare(options), "the same command goes on")
