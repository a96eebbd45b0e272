"""Fine-tune a transformers decoder on a file of texts, prompts with completions, or conversations.

Examples:
  accelerate launch -m capaboost train-lm book.txt --model path/to/decoder
  capaboost train-lm questions.jsonl --model Qwen/Qwen3-0.6B --method lora --seed 43
  capaboost train-lm train.jsonl --validation dev.jsonl --test test.jsonl --model path/to/decoder
  capaboost train-lm book.txt --lr-grid 1e-4,3e-4,1e-3 --set data.max_length=1024

FILE is plain text, which is one document, or JSON lines: {"text"}, {"prompt", "completion"}, of which the completion
alone is predicted, or {"messages"} for a tokenizer with a chat template. What is reported is the perplexity, the
exponential of the mean loss of a token, on texts that are held out.

Settings come from configs/lm/lora.yaml, or from --config. Flags replace them, and --set replaces anything. The
sections are model, data, train and adapter. A run leaves metrics.jsonl, TensorBoard logs, checkpoint.pt, adapter/ and
result.json in its output folder; a run that was stopped continues bit-identically with the same command and --resume.
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
    from capaboost.runs.settings import LanguageRun

GRID = "5e-5,1e-4,2e-4,5e-4,1e-3"  # around the rate of the settings file
OWN_FLAGS = {name: f"data.{name}" for name in ("file", "validation", "test")}


def lm_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog, add_help=False)
    add = parser.add_argument
    add("file", nargs="?", type=given, metavar="FILE", help="texts to train on: plain text, or .jsonl")
    add("--validation", type=given, metavar="FILE", help="held-out texts (default: a tenth of FILE)")
    add("--test", type=given, metavar="FILE", help="texts to test on (default: half of the held-out ones)")
    add("--protocol", choices=("select", "test"), help="select: perplexity on the held-out texts selects the epoch; "
        "test: the last epoch counts")  # fmt: skip
    add("--model", type=given, metavar="NAME", help="a hub name, or a folder that save_pretrained wrote "
        "(default: openai-community/gpt2)")  # fmt: skip
    add_run_flags(parser, GRID, "runs/lm/<file>/<model>/<method>-seed<seed>", "capaboost.runs.settings.LanguageRun")
    return parser


def load(options: argparse.Namespace) -> LanguageRun:
    """The settings of the file, the flags and `--set`.

    Raises:
        UserError: If one is wrong.
    """
    flags = {name: key for name, key in FLAGS.items() if hasattr(options, name)}
    return load_typed("train-lm", flag_settings(options, flags | OWN_FLAGS), options)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    parser = lm_parser(prog)
    options = parser.parse_args(arguments)
    if not (options.file or options.config):
        parser.error("give FILE, such as book.txt or questions.jsonl, or --config FILE")
    return exit_code(lambda: run_and_show("train-lm", load(options), options))
