"""Fine-tune a transformers encoder on a GLUE task, or on texts of your own.

Examples:
  accelerate launch -m capaboost train-glue --task cola
  capaboost train-glue --task rte --method lora --seed 43
  capaboost train-glue --task mnli --model microsoft/deberta-v3-base --method capaboost-padapter
  capaboost train-glue --task sst2 --data-dir glue --model path/to/encoder
  capaboost train-glue --task mrpc --lr-grid 1e-4,5e-4,1e-3 --set adapter.r=16
  capaboost train-glue --data reviews.csv --model path/to/encoder   # a fifth of each class is held out to test on
  capaboost train-glue --config mine.yaml  # data of your own with splits of their own: docs/text.md has an example

Settings come from the paper: configs/glue/deberta-v3-base/ for DeBERTaV3-base and configs/glue/roberta-base/
for any other model, <task>-padapter.yaml for adapters and prefixes and <task>-lora.yaml else; or from --config.
Flags replace them, and --set replaces anything. The sections are model, data, train and adapter. A run leaves
metrics.jsonl, TensorBoard logs, checkpoint.pt, adapter/ and result.json in its output folder; a run that was
stopped continues bit-identically with the same command and --resume.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from capaboost.command_line import (
    FLAGS,
    add_run_flags,
    exit_code,
    flag_settings,
    given,
    given_path,
    load_typed,
    make_parser,
    run_and_show,
)
from capaboost_core.errors import UserError

if TYPE_CHECKING:
    from capaboost.runs.settings import GlueRun

PAPER = "paper"  # a bare --lr-grid
GRIDS = {  # the paper's, sections D.1.2 and D.2.2: 6e-4 for RoBERTa, 8e-4 for DeBERTaV3
    "roberta-base": "1e-4,3e-4,5e-4,6e-4,1e-3,1.5e-3,2e-3,3e-3,5e-3",
    "deberta-v3-base": "1e-4,3e-4,5e-4,8e-4,1e-3,1.5e-3,2e-3,3e-3,5e-3",
}


def glue_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog, add_help=False)
    add = parser.add_argument
    add(
        "--task",
        type=given,
        metavar="NAME",
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte; your own data: --config",
    )
    add("--data", type=given_path, metavar="FILE", help="texts of your own: a .csv, .tsv or .jsonl file")
    add("--text", type=given, metavar="COLUMN", help="the column of its texts; two, with a comma, for pairs")
    add("--label", type=given, metavar="COLUMN", help="the column to predict")
    add(
        "--data-dir",
        type=given,
        metavar="DIR",
        help="folder with the original GLUE folders (default: load from the hub)",
    )
    add(
        "--protocol",
        choices=("propetl", "adalora", "select", "test"),
        help="propetl: the epoch is selected on half of dev or on 1,000 training rows (Table 2); adalora: dev is the "
        "test set, the last epoch counts (Table 3); select, test: likewise of your own data",
    )
    add(
        "--model",
        type=given,
        metavar="NAME",
        help="a hub name, or a folder that save_pretrained wrote (default: roberta-base)",
    )
    add_run_flags(parser, PAPER, "runs/glue/<task>/<model>/<method>-seed<seed>", "capaboost.runs.settings.GlueRun")
    return parser


def load(options: argparse.Namespace) -> GlueRun:
    """The settings of the file, the flags and `--set`.

    Raises:
        UserError: If one is wrong.
    """
    flags = flag_settings(options, FLAGS | {"task": "data.task"})
    if options.data is not None:
        flags.setdefault("data", {}).update(_own(options))
    return load_typed("train-glue", flags, options)


def _own(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the file of `--data`.

    Raises:
        UserError: If the file cannot be read, a column has to be named, or other data are given beside it.
    """
    from capaboost_text.glue.own_data import describe

    for flag in ("task", "data_dir"):
        if getattr(options, flag) is not None:
            raise UserError(f"--data is given beside --{flag.replace('_', '-')}; drop one of them")
    return describe(options.data, options.text.split(",") if options.text else (), options.label)


def train(options: argparse.Namespace) -> None:
    """Run it, and show the result."""
    run = load(options)
    from capaboost.runs.settings import family_of

    if options.lr_grid == PAPER:
        options.lr_grid = GRIDS[family_of(run.model.name)]
    run_and_show("train-glue", run, options)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    parser = glue_parser(prog)
    options = parser.parse_args(arguments)
    if not (options.task or options.config or options.data):
        parser.error("give --task NAME, such as --task cola, --data FILE of your own texts, or --config FILE")
    return exit_code(lambda: train(options))
