"""Make tables and plots from the result.json files of finished runs.

    capaboost tables results --markdown results/tables.md --csv results/tables.csv --readme README.md
    capaboost tables runs/sweep --compare lora --latex table.tex --plots runs/sweep/plots

Runs that differ in nothing but their seeds become one row: mean and sample standard deviation. With
`--compare` the rows are tasks and the columns methods, each with its paired difference to the one named. With
`--readme` the table goes between the lines `<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaboost.command_line import exit_code, given, make_parser

if TYPE_CHECKING:
    from capaboost.tables.layout import Layout

FILES = ("markdown", "csv", "latex", "readme")


def tables_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    add("folders", nargs="*", type=Path, default=[Path("results")], metavar="DIR", help="default: results")
    add("--compare", type=given, metavar="METHOD", help="tasks x methods, with differences to this one")
    add("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    add("--csv", type=Path, metavar="FILE", help="write the table as CSV, with raw numbers")
    add("--latex", type=Path, metavar="FILE", help="write the table as LaTeX, for the package booktabs")
    add("--readme", type=Path, metavar="FILE", help="replace the table between the markers")
    return parser


def make(options: argparse.Namespace) -> None:
    """Read all results, show the table, and write it if a path is given."""
    from capaboost.outputs import check_outputs
    from capaboost.tables.failed import failed_runs
    from capaboost.tables.latex import to_latex
    from capaboost.tables.read import read_results
    from capaboost.tables.write import fill, show, to_csv, to_markdown
    from capaboost_core.files import write_atomically

    for flag in FILES:
        check_outputs(f"--{flag}", getattr(options, flag))
    results = read_results(options.folders)
    layout, records = make_table(
        results, options.compare, [f"Failed: {line}." for line in failed_runs(options.folders)]
    )
    outputs = {options.markdown: to_markdown(layout), options.csv: to_csv(records), options.latex: to_latex(layout)}
    if options.readme:
        outputs[options.readme] = fill(options.readme, to_markdown(layout))
    show(layout)
    for path, text in outputs.items():
        if path:
            write_atomically(path, lambda file, text=text: file.write(text.encode()))


def make_table(results: dict[Path, dict[str, Any]], reference: str | None, notes: list[str]) -> tuple[Layout, list]:
    """The table, and the records of its CSV file: a row for each method and its settings, or a comparison."""
    from dataclasses import asdict

    from capaboost.tables.compare import compare
    from capaboost.tables.layout import of_comparison, of_rows
    from capaboost.tables.records import records_of
    from capaboost.tables.rows import make_rows

    if reference is None:
        rows = make_rows(results)
        return of_rows(rows, notes), [asdict(row) for row in rows]
    table = compare(results, reference)
    return of_comparison(table, notes), records_of(table)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = tables_parser(prog).parse_args(arguments)
    return exit_code(lambda: make(options), "nothing was written")
