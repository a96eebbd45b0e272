"""Report the rank of trained increments.

Examples:
  capaboost rank --adapter runs/dtd/adapter
  capaboost rank --epochs 3 --r 8 16 32 64 --num-tied 1 2 4 --output results/rank/digits.json
  capaboost rank --theorem --output results/rank/theorem.json

Without --adapter and --theorem, LoRA (d = 1) and CapaBoost-LoRA adapters are trained on the embedded digits
and backbone, one run for each r and d in a folder of its own, and their ranks are shown in the layout of the
paper's Table 1. After a stop the same command goes on, and no finished run is trained again. --theorem draws
random matrices for Theorem 3.1. `capaboost plots` draws what --output wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaboost.command_line import at_least_one, exit_code, make_parser

if TYPE_CHECKING:
    from rich.table import Table


def rank_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    count: dict[str, Any] = {"type": at_least_one}
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--adapter", type=Path, metavar="FOLDER", help="report a saved adapter instead of training")
    kind.add_argument("--theorem", action="store_true", help="random draws for Theorem 3.1 instead of training")
    add("--r", **count, nargs="+", default=[8, 16, 32, 64], metavar="R", help="default: 8 16 32 64")
    add("--num-tied", **count, nargs="+", default=[1, 2, 4], metavar="D", help="default: 1 2 4")
    add("--epochs", **count, default=3, metavar="N", help="of each run (default: 3)")
    add("--seed", type=int, default=42, metavar="N", help="of the runs, or of the draws (default: 42)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any setting of the runs")
    add("--output-dir", type=Path, default=Path("runs/rank"), metavar="DIR", help="of the runs (default: runs/rank)")
    add("--size", **count, default=64, metavar="N", help="--theorem: n of the n x n matrices (default: 64)")
    add("--draws", **count, default=100, metavar="N", help="--theorem: draws of each case (default: 100)")
    add("--output", type=Path, metavar="FILE.json", help="write the report as JSON")
    return parser


def report(options: argparse.Namespace) -> None:
    """Make the chosen report, after checking that it can be written."""
    from capaboost.console import check_outputs

    check_outputs("--output", options.output)
    (report_adapter if options.adapter else report_theorem if options.theorem else report_study)(options)


def report_adapter(options: argparse.Namespace) -> None:
    """Ranks of a saved adapter, by layer and in total."""
    from capaboost.report.rank import adapter_record, increments_table
    from capaboost.report.rank_study import load_saved

    record = adapter_record(load_saved(options.adapter))
    finish(options, increments_table(record), ["spectra"], {"combinations": [record]})


def report_study(options: argparse.Namespace) -> None:
    """Train the missing adapters, then show the ranks of all."""
    from capaboost.report.rank import adapter_record, study_table
    from capaboost.report.rank_study import Study, load_saved, run_record

    study = Study(options.output_dir, options.epochs, options.seed, options.set)
    pairs = [(r, num_tied) for r in sorted(set(options.r)) for num_tied in sorted(set(options.num_tied))]
    folders = study.train_missing(pairs)
    records = [adapter_record(load_saved(folder / "adapter")) | {"run": run_record(folder)} for folder in folders]
    finish(options, study_table(records), ["spectra", "rank-parameters"], {"combinations": records})
    if any(record["paper"] for record in records):
        print("In parentheses: the paper's Table 1, measured on RoBERTa-base of width 768.")


def report_theorem(options: argparse.Namespace) -> None:
    """Draw random matrices and count their ranks."""
    from capaboost.report.rank import draw_theorem, theorem_table

    values = draw_theorem(options.size, options.draws, options.seed)
    finish(options, theorem_table(values), ["theorem"], values)


def finish(options: argparse.Namespace, table: Table, plots: list[str], values: dict) -> None:
    """Show the table, and write the report if `--output` is given."""
    from capaboost.console import show_table
    from capaboost.report.rank import write_report

    show_table(table)
    if options.output:
        write_report(options.output, plots, values)
        print(f"report: {options.output}; capaboost plots {options.output.parent} draws it")


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = rank_parser(prog).parse_args(arguments)
    return exit_code(lambda: report(options), "the same command goes on")
