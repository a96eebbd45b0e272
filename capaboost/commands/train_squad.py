"""Fine-tune a transformers encoder on SQuAD v1.1 or v2.0.

Examples:
  accelerate launch -m capaboost train-squad --dataset squad_v1
  capaboost train-squad --dataset squad_v2 --config configs/squad/v2_padapter_16.yaml
  capaboost train-squad --dataset squad_v1 --method lora --set adapter.r=8 --seed 43
  capaboost train-squad --dataset squad_v1 --data-dir squad --model path/to/encoder
  capaboost train-squad --dataset squad_v2 --protocol select --lr-grid 3e-4,1e-3

Settings come from configs/squad/v1_padapter_64.yaml or v2_padapter_64.yaml, the largest budget of the paper, or
from --config. Flags replace them, and --set replaces anything. The sections are model, data, train and adapter.
A run leaves metrics.jsonl, TensorBoard logs, checkpoint.pt, adapter/ and result.json in its output folder; a run
that was stopped continues bit-identically with the same command and --resume.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from capaboost.command_line import (
    FLAGS,
    add_run_flags,
    exit_code,
    flag_settings,
    given,
    load_typed,
    make_parser,
    run_and_show,
)

if TYPE_CHECKING:
    from capaboost.runs.settings import SquadRun

GRID = "1e-4,3e-4,5e-4,8e-4,1e-3"  # the paper's, section E.2


def squad_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog, add_help=False)
    add = parser.add_argument
    add("--dataset", type=given, metavar="NAME", help="squad_v1 or squad_v2")
    add(
        "--data-dir",
        type=given,
        metavar="DIR",
        help="folder with the official JSON files (default: load from the hub)",
    )
    add("--protocol", choices=("test", "select"), help="test: dev is the test set, the last epoch counts; select: "
        "half of dev selects the epoch and the threshold of v2.0, the other half is the test set")  # fmt: skip
    add("--model", type=given, metavar="NAME", help="a hub name, or a folder that save_pretrained wrote "
        "(default: microsoft/deberta-v3-base)")  # fmt: skip
    add_run_flags(parser, GRID, "runs/squad/<dataset>/<model>/<method>-seed<seed>", "capaboost.runs.settings.SquadRun")
    return parser


def load(options: argparse.Namespace) -> SquadRun:
    """The settings of the file, the flags and `--set`.

    Raises:
        UserError: If one is wrong.
    """
    return load_typed("train-squad", flag_settings(options, FLAGS | {"dataset": "data.dataset"}), options)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    parser = squad_parser(prog)
    options = parser.parse_args(arguments)
    if not (options.dataset or options.config):
        parser.error("give --dataset NAME, such as --dataset squad_v1, or --config FILE")
    return exit_code(lambda: run_and_show("train-squad", load(options), options))
