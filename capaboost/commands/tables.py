"""Make tables from the result.json files of finished runs.

    capaboost tables results --markdown results/tables.md --csv results/tables.csv --readme README.md

Runs that differ in nothing but their seeds become one row: mean and sample standard deviation. With
`--readme` the table goes between the lines `<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from capaboost.command_line import exit_code, make_parser


def tables_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    add("folders", nargs="*", type=Path, default=[Path("results")], metavar="DIR", help="default: results")
    add("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    add("--csv", type=Path, metavar="FILE", help="write the table as CSV, with raw numbers")
    add("--readme", type=Path, metavar="FILE", help="replace the table between the markers")
    return parser


def make(options: argparse.Namespace) -> None:
    """Read all results, show the table, and write it if a path is given."""
    from capaboost.outputs import check_outputs
    from capaboost.tables.read import read_results
    from capaboost.tables.rows import make_rows
    from capaboost.tables.write import fill, show, to_csv, to_markdown
    from capaboost_core.files import write_atomically

    for flag in ("markdown", "csv", "readme"):
        check_outputs(f"--{flag}", getattr(options, flag))
    rows = make_rows(read_results(options.folders))
    outputs = {options.markdown: to_markdown(rows), options.csv: to_csv(rows)}
    if options.readme:
        outputs[options.readme] = fill(options.readme, to_markdown(rows))
    show(rows)
    for path, text in outputs.items():
        if path:
            write_atomically(path, lambda file, text=text: file.write(text.encode()))


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = tables_parser(prog).parse_args(arguments)
    return exit_code(lambda: make(options), "nothing was written")
