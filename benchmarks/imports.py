"""Processor time of importing each package in a fresh interpreter, beside torch alone, and of each command's help.

Examples:
  python -m benchmarks.imports
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

from benchmarks.command import Measured, finish, make_parser, prepare, repeats_of, run_command
from benchmarks.timing import interleave
from capaboost.cli import COMMANDS

API = "capaboost_core.adapter_files.load, capaboost_core.modes"  # of `from capaboost_core import load_adapter, merge`
MODULES = ("capaboost.cli", "torch", "capaboost_core", API, "capaboost_vision", "capaboost_text.encoders")
HELP = tuple(f"capaboost {command} --help" for command in COMMANDS)
QUICK = ("capaboost.cli", "capaboost tables --help")


def running(what: str) -> Callable[[], float]:
    """A measure: seconds of user and system time, which other work on the machine hardly changes.

    Args:
        what: Modules to import, or a command line of `capaboost`.
    """
    command = ["-m", *what.split()] if what in HELP else ["-c", f"import {what}"]

    def measure() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return measure


def main(arguments: list[str] | None = None) -> None:
    options = make_parser(__doc__, repeats=5, minutes=5).parse_args(arguments)
    options.device = "cpu"
    device = prepare(options)
    measured = QUICK if options.quick else MODULES + HELP
    values = interleave({name: running(name) for name in measured}, repeats_of(options))
    finish(options, device, Measured("imports", "", "s", values, {name: {} for name in measured}, (), {}))


if __name__ == "__main__":
    sys.exit(run_command(main))
