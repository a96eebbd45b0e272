"""Processor time of importing each package in a fresh interpreter, beside torch alone.

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

MODULES = ("capaboost.cli", "torch", "capaboost_core", "capaboost_vision", "capaboost_text")
QUICK = ("capaboost.cli",)


def importing(module: str) -> Callable[[], float]:
    """A measure: seconds of user and system time, which other work on the machine hardly changes."""

    def measure() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return measure


def main(arguments: list[str] | None = None) -> None:
    options = make_parser(__doc__, repeats=5, minutes=5).parse_args(arguments)
    options.device = "cpu"
    device = prepare(options)
    modules = QUICK if options.quick else MODULES
    values = interleave({name: importing(name) for name in modules}, repeats_of(options))
    finish(options, device, Measured("imports", "", "s", values, {name: {} for name in modules}, (), {}))


if __name__ == "__main__":
    sys.exit(run_command(main))
