"""The command `capaboost` and its table of commands, each of which is imported when it is run."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from typing import Any

from capaboost.command_line import exit_code, given, make_parser

COMMANDS = {  # module of capaboost.commands, and what it does
    "train-vtab": ("train_vtab", "fine-tune a timm ViT on a VTAB-1k task or on a folder of images"),
    "train-glue": ("train_glue", "fine-tune a transformers encoder on a GLUE task"),
    "train-squad": ("train_squad", "fine-tune a transformers encoder on SQuAD v1.1 or v2.0"),
    "train-lm": ("train_lm", "fine-tune a transformers decoder on a file of texts, prompts or conversations"),
    "prepare-vtab": ("prepare_vtab", "download and prepare sets of VTAB-1k, once"),
    "predict": ("predict", "predict classes of images or texts with a trained run"),
    "export": ("export", "write a trained run as ONNX, for timm, for peft, or as plain safetensors"),
    "push": ("push", "put a trained run's adapter on the Hugging Face hub"),
    "flops": ("flops", "report parameters, multiply-adds, bytes and peak memory of each method"),
    "rank": ("rank", "report the rank of trained increments"),
    "sweep": ("sweep", "run every task, method and seed of a file, on this machine or a cluster"),
    "noah": ("noah", "search widths of LoRA, adapter and prompts for a timm ViT under a budget, and train them"),
    "compare": ("compare", "train several methods on one task under one budget, and print one table"),
    "tables": ("tables", "make tables from the result.json files of finished runs"),
    "report": ("report", "write one HTML page of a run, or of the runs of a sweep"),
    "plots": ("plots", "draw the plots of the JSON reports in a folder"),
}


class Version(argparse.Action):
    """Prints the installed version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import capaboost

        parser.exit(message=f"capaboost {capaboost.__version__}\n")


class Completion(argparse.Action):
    """Prints a shell's completion of all commands and flags, for which all commands are imported."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *__: Any) -> None:
        parser.exit(exit_code(lambda: print(completion(shell))))


def completion(shell: str) -> str:
    """The script that completes commands and flags in a shell.

    Raises:
        UserError: If shtab is not installed.
    """
    from capaboost_core.extras import need

    need("shtab", "completion", "shell completions")
    import shtab

    parser = argparse.ArgumentParser("capaboost", description="capaboost")
    commands = parser.add_subparsers()
    for name, (module, text) in COMMANDS.items():
        members = vars(importlib.import_module(f"capaboost.commands.{module}"))
        (make,) = (f for n, f in members.items() if n.endswith("_parser") and f is not make_parser)
        own = make(f"capaboost {name}")
        commands.add_parser(name, help=text, parents=[own], add_help=False)
    return shtab.complete(parser, shell)


def cli_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [
        textwrap.fill(f"{name.ljust(width)}  {text}", 79, initial_indent="  ", subsequent_indent=" " * (width + 4))
        for name, (_, text) in COMMANDS.items()
    ]
    parser = make_parser(
        "\n".join(["Capacity-boosted fine-tuning of timm and transformers models.", "", "commands:", *lines]),
        prog="capaboost",
        epilog="capaboost COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version, then exit")
    parser.add_argument("--completion", action=Completion, choices=("bash", "zsh", "tcsh"), metavar="SHELL",
        help="print a completion for bash, zsh or tcsh, then exit")  # fmt: skip
    parser.add_argument("--plugin", action="append", default=[], type=given, metavar="MODULE",
        help="import a module with methods of your own first, here and in workers; may be repeated")  # fmt: skip
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its flags")
    return parser


def add_plugin(module: str) -> None:
    """Have a module, which may lie in the working folder, imported with the methods, here and in started processes."""
    sys.path[:0] = [] if os.getcwd() in sys.path else [os.getcwd()]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, [*paths, os.getcwd()])))
    named = os.environ.get("CAPABOOST_PLUGINS", "").split(",")
    os.environ["CAPABOOST_PLUGINS"] = ",".join(dict.fromkeys(filter(None, [*named, module])))


def main(arguments: list[str] | None = None) -> int:
    options = cli_parser().parse_args(arguments)
    for module in options.plugin:
        add_plugin(module)
    module, _ = COMMANDS[options.command]
    command = importlib.import_module(f"capaboost.commands.{module}")
    return command.main(options.arguments, prog=f"capaboost {options.command}")
