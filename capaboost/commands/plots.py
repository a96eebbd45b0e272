"""Draw every plot of the JSON reports in a folder, from these files alone.

    capaboost plots
    capaboost plots runs/benchmarks

A report names its plots under the key `plots`. Each becomes a PNG and an SVG beside it, <report>.svg, or
<report>-<plot>.svg where it names several. The same report and version of matplotlib give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from capaboost.command_line import exit_code, make_parser

FOLDERS = [Path("results"), Path("benchmarks/results")]


def plots_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    default = " ".join(map(str, FOLDERS))
    parser.add_argument("folders", nargs="*", type=Path, default=FOLDERS, metavar="DIR", help=f"default: {default}")
    return parser


def draw(options: argparse.Namespace) -> None:
    """Draw the plots of every report, and name the files."""
    from capaboost_core.extras import need

    need("matplotlib", "plots", "plots")
    from capaboost.plots.draw import draw_all

    draw_all(options.folders)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = plots_parser(prog).parse_args(arguments)
    return exit_code(lambda: draw(options), "the same command draws all again")
