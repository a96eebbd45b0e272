"""Make tables and plots from the result.json files of finished runs.

    capaboost tables results --markdown results/tables.md --csv results/tables.csv --readme README.md
    capaboost tables runs/sweep --compare lora --latex table.tex --plots runs/sweep/plots

Runs that differ in nothing but their seeds become one row: mean and sample standard deviation. With
`--compare` the rows are tasks and the columns methods, each with its paired difference to the one named; more than
twelve methods are the rows, the best first. With `--readme` the table goes between the lines
`<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from capaboost.command_line import exit_code, given, given_path, make_parser

if TYPE_CHECKING:
    from capaboost.tables.compare import Comparison
    from capaboost.tables.write import Layout

STYLES = ("paper", "spread", "differences")
FILES = ("markdown", "csv", "latex", "readme")


def tables_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    add("folders", nargs="*", type=Path, default=[Path("results")], metavar="DIR", help="default: results")
    add("--compare", type=given, metavar="METHOD", help="tasks x methods, with differences to this one")
    add("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    add("--csv", type=Path, metavar="FILE", help="write the table as CSV, with raw numbers")
    add("--latex", type=Path, metavar="FILE", help="write the table as LaTeX, for the package booktabs")
    add(
        "--latex-style",
        choices=STYLES,
        default="paper",
        help="of a comparison; paper: methods x tasks with trained parameters and average, the best bold, the second "
        "underlined (default); spread: with deviations; differences: tasks x methods with these and verdicts",
    )
    add("--plots", type=given_path, metavar="DIR", help="draw what the results hold enough for, as PNG and SVG")
    add("--readme", type=Path, metavar="FILE", help="replace the table between the markers")
    return parser


def make(
    folders: Sequence[Path],
    reference: str | None = None,
    files: Mapping[str, Path | None] = MappingProxyType({}),
    plots: Path | None = None,
    style: str = "paper",
) -> None:
    """Read all results, show the table, and write it and the plots where a path is given.

    Args:
        folders: Where the results are looked for.
        reference: The method that the others are compared with, if they are.
        files: The path for each of FILES that is written.
        plots: A folder for the plots.
        style: How a comparison is written in LaTeX, one of STYLES.

    Raises:
        UserError: If there are no results, no such method, or a path cannot be written to.
    """
    from capaboost.console import check_outputs
    from capaboost.tables.compare import compare
    from capaboost.tables.paper import to_paper
    from capaboost.tables.read import failed_runs, read_results
    from capaboost.tables.write import fill, show, to_csv, to_latex, to_markdown
    from capaboost_core.files import write_atomically

    draw = plotter(plots) if plots else None
    for flag, path in files.items():
        check_outputs(f"--{flag}", path)
    results = read_results(list(folders))
    table = compare(results, reference) if reference or draw else None
    notes = [f"Failed: {line}." for line in failed_runs(list(folders))]
    layout, records = comparison(table, notes) if table and reference else rows(results, notes)
    texts = {"markdown": to_markdown(layout), "csv": to_csv(records), "latex": to_latex(layout)}
    if table and reference and style != "differences":
        texts["latex"] = to_paper(table, layout.notes, with_spread=style == "spread")
    if readme := files.get("readme"):
        texts["readme"] = fill(readme, to_markdown(layout))
    show(layout)
    for kind, text in texts.items():
        if path := files.get(kind):
            write_atomically(path, lambda file, text=text: file.write(text.encode()))
    for line in draw(table) if draw and table else ():
        print(line)


def rows(results: dict[Path, dict[str, Any]], notes: list[str]) -> tuple[Layout, list[dict[str, Any]]]:
    """The table with a line for each method and its settings, and the records of its CSV file."""
    from dataclasses import asdict

    from capaboost.tables.rows import make_rows, origin_notes, vtab_notes
    from capaboost.tables.write import of_rows

    made = make_rows(results)
    return of_rows(made, [*vtab_notes(made), *origin_notes(results), *notes]), [asdict(row) for row in made]


def comparison(table: Comparison, notes: list[str]) -> tuple[Layout, list[dict[str, Any]]]:
    """The table of tasks and methods, and the records of its CSV file."""
    from capaboost.tables.write import of_comparison, records_of

    return of_comparison(table, notes), records_of(table)


def plotter(folder: Path) -> Callable[[Comparison], Iterator[str]]:
    """What draws into a folder, checked first."""
    from capaboost_core.extras import need

    need("matplotlib", "plots", "plots")
    from capaboost.plots.results import check_folder, draw_results

    check_folder(folder)
    return lambda table: draw_results(table, folder)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = tables_parser(prog).parse_args(arguments)
    files = {name: getattr(options, name) for name in FILES}
    style = options.latex_style
    return exit_code(
        lambda: make(options.folders, options.compare, files, options.plots, style), "nothing was written"
    )
