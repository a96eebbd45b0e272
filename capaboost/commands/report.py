"""Write one self-contained HTML page of a run, or of all runs below a folder: a sweep, a comparison.

Examples:
  capaboost report runs/photos
  capaboost report runs/sweeps/digits --compare lora --output digits.html

The page holds the result, curves, the confusion of classes, singular values of the delta weights, costs, settings and
where the numbers come from; of several runs the table, accuracy over trained parameters and curves. Its plots are
interactive, and it needs no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from capaboost.command_line import exit_code, make_parser


def report_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    parser.add_argument("folder", type=Path, metavar="RUN_OR_SWEEP", help="a run's folder, or one with runs below it")
    parser.add_argument(
        "--compare", metavar="LABEL", help="the method that the others are compared with, seed by seed"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in the folder")
    return parser


def write(folder: Path, reference: str | None, output: Path) -> None:
    """Write the page, after checking that it can be written."""
    from capaboost_core.extras import need

    need("plotly", "report", "reports")
    from capaboost.console import check_outputs
    from capaboost.report.page import render
    from capaboost_core.files import write_atomically

    check_outputs("--output", output)
    text = render(folder, reference)
    write_atomically(output, lambda file: file.write(text.encode()))
    print(f"report: {output}")


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = report_parser(prog).parse_args(arguments)
    output = options.output or options.folder / "report.html"
    return exit_code(lambda: write(options.folder, options.compare, output), "nothing was written")
