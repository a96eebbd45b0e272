"""What the commands share: flags, settings from flags, and answers to mistakes.

Nothing heavy is imported before the flags are read, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FLAGS = {
    "data_dir": "data.dir",
    "protocol": "data.protocol",
    "model": "model.name",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "seed": "train.seed",
    "mixed_precision": "train.mixed_precision",
}
METHODS = """capaboost-lora, lora, capaboost-padapter, padapter, capaboost-hadapter, hadapter, capaboost-prefix,
prefix, linear or full; r, dropout and the mask seed stay as configured"""


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows the description as it stands; a command adds its data before `add_run_flags`."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def at_least_one(text: str) -> int:
    """A flag's value: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def add_run_flags(parser: argparse.ArgumentParser, grid: str, default_folder: str) -> None:
    """The flags of every training command.

    Args:
        parser: What gets the flags.
        grid: The rates of a bare `--lr-grid`.
        default_folder: Where a run lives by default, for the help.
    """
    add = parser.add_argument
    add("--method", metavar="PRESET", help=" ".join(METHODS.split()))
    add("--epochs", type=int, metavar="N", help="the warm-up keeps its share, unless it is set in steps")
    add("--batch-size", type=int, metavar="N", help="of one optimizer step, over all processes")
    add("--lr", type=float, metavar="RATE", help="peak learning rate of AdamW")
    add("--lr-grid", nargs="?", const=grid, metavar="RATES", help="a run for each rate, of which the selection "
        f"split keeps the best; without a value: {grid}")  # fmt: skip
    add("--seed", type=int, metavar="N", help="of head, order and dropout; adapter.seed is that of the masks")
    add(
        "--mixed-precision", choices=("no", "fp16", "bf16"), help="default: the config's, or as accelerate launch says"
    )
    add("--output-dir", type=Path, metavar="DIR", help=f"default: {default_folder}")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--config", type=Path, metavar="FILE", help="a YAML file in place of the default one")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any setting; may be repeated")


def flag_settings(options: argparse.Namespace, flags: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The flags that were given, by section."""
    settings: dict[str, dict[str, Any]] = {}
    for flag, target in flags.items():
        section, key = target.split(".")
        if getattr(options, flag) is not None:
            settings.setdefault(section, {})[key] = getattr(options, flag)
    return settings


def carry_out(run: Any, options: argparse.Namespace, prepare: Callable) -> None:
    """Run the settings, or the grid of learning rates, and show the result."""
    from accelerate import PartialState

    from capaboost_core.training.experiment import run_experiment
    from capaboost_core.training.lr_grid import parse_rates, run_grid
    from capaboost_core.training.results import print_table

    folder = options.output_dir or run.default_folder()
    if options.lr_grid:
        result = run_grid(run, parse_rates(options.lr_grid), folder, options.resume, prepare)
    else:
        result = run_experiment(run, folder, options.resume, prepare)
    if result:
        print_table([result])
        print(f"result: {folder / 'result.json'}")
    PartialState().destroy_process_group()


def answer(command: Callable[[], None], stopped: str = "the same command with --resume goes on") -> int:
    """Carry out a command; a mistake is told in one line, by one process.

    Args:
        command: What to do.
        stopped: What to say of an interruption.

    Returns:
        The exit code: 0, 2 after a mistake, 128 + its number after a signal, such as 130 after Ctrl-C.
    """
    from capaboost_core.exit_code import exit_code_of

    return exit_code_of(command, stopped)
