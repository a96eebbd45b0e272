"""What the commands share: flags, settings from flags, and exit codes.

Nothing heavy is imported before the flags are read, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from capaboost.budget import add_budget_flags, budgeted

if TYPE_CHECKING:
    from capaboost.training.settings import Raw

FLAGS = {
    "data_dir": "data.dir",
    "protocol": "data.protocol",
    "model": "model.name",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "seed": "train.seed",
    "mixed_precision": "train.mixed_precision",
}
TRACKERS = ("tensorboard", "wandb", "trackio", "none")


class Parser(argparse.ArgumentParser):
    """A parser whose error line stays short, however long the typed value is.

    Attributes:
        typed: What is being parsed.
    """

    typed: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.typed = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One line, with what comes close to a wrong flag or choice; the usage is for `--help`."""
        usage = f"; type {self.prog} --help" if "arguments are required" in message else ""
        message = message.replace(", ...", "")  # argparse's name of the arguments of a command
        text = textwrap.shorten(message + (self._close(message) or usage), 500, placeholder=" ...")
        self.exit(2, f"{self.prog}: error: {text}\n")

    def _close(self, message: str) -> str:
        names = [name for action in self._actions for name in (*action.option_strings, *(action.choices or ()))]
        wrong = re.search(r"unrecognized arguments: (\S+)|invalid choice: '([^']*)'", message)
        if wrong:
            typed = (wrong[1] or wrong[2]).split("=")[0]
        else:  # a wrong flag in place of what is missing
            typed = next((word for word in self.typed if word.startswith("--") and word not in names), "")
        close = difflib.get_close_matches(typed, names, n=1)
        return f"; did you mean {close[0]}?" if close else ""


def make_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser with a description of paragraphs; a command adds its data before `add_run_flags`.

    Args:
        description: The module's docstring.
        **options: Of `argparse.ArgumentParser`, such as prog.
    """
    return Parser(description=description, formatter_class=Paragraphs, allow_abbrev=False, **options)


class Paragraphs(argparse.RawDescriptionHelpFormatter):
    """Fills the paragraphs of a description to the terminal's width; those with indented lines stand as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        filled = [part if "\n " in part or part.startswith(" ") else textwrap.fill(part, width) for part in paragraphs]
        return "\n\n".join(filled)


def given(text: str) -> str:
    """A flag's value: a text that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty; give one, or leave the flag out")
    return text


def given_path(text: str) -> Path:
    """A flag's value: a path; the empty string is refused."""
    return Path(given(text))


def at_least_one(text: str) -> int:
    """A flag's value: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def device_name(text: str) -> str:
    """A flag's value: a device as torch names it."""
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device, such as cpu, cuda, cuda:1 or mps")
    return text


class Help(argparse.Action):
    """Prints the flags, the presets and the settings of a run; after `--method NAME` the settings of that method.

    Only the latter import the method's module, and torch with it.
    """

    def __init__(self, option_strings: list[str], dest: str, run: str, **_: Any):
        about = "show this, the presets and the settings, then exit; after --method NAME the settings of that method"
        super().__init__(option_strings, dest, nargs=0, help=about)
        self.run = run

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, *_: Any) -> None:
        show = self._show_method if options.method else self._show_run
        parser.exit(exit_code(lambda: show(parser, options.method)))

    def _show_run(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from capaboost.training.settings import sections_of
        from capaboost_core.methods import PRESETS
        from capaboost_core.settings import help_on

        parser.print_help()
        names = ", ".join(PRESETS)
        print("\npresets of --method:")
        print(textwrap.fill(names, 79, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
        print("\nsettings of --set, with the defaults of the code (a config may have others):")
        module, name = self.run.rsplit(".", 1)
        sections = sections_of(getattr(importlib.import_module(module), name))
        print(help_on({name: section for name, section in sections.items() if name != "adapter"}))
        print(f"\nsettings of adapter, which are the method's: {parser.prog} --method lora --help")

    def _show_method(self, _: argparse.ArgumentParser, preset: str) -> None:
        from capaboost_core.methods import resolve_config
        from capaboost_core.settings import help_on

        method = resolve_config(preset)
        print(f"settings of the preset {preset}, for --set:")
        print(help_on({"adapter": method}))


def add_run_flags(parser: argparse.ArgumentParser, grid: str, default_folder: str, run: str) -> None:
    """The flags of every training command.

    Args:
        parser: What gets the flags; `--help` then lists the settings too.
        grid: The rates of a bare `--lr-grid`.
        default_folder: Where a run lives by default, for the help.
        run: Module and name of the class of all settings, for the help.
    """
    add = parser.add_argument
    add("--method", type=given, metavar="PRESET", help="one of the presets listed below; r, dropout and the mask "
        "seed stay as configured")  # fmt: skip
    add("--epochs", type=int, metavar="N", help="the warm-up keeps its share of the run")
    add("--batch-size", type=int, metavar="N", help="of one optimizer step, over all processes")
    add("--lr", type=float, metavar="RATE", help="peak learning rate of AdamW")
    add("--lr-grid", nargs="?", const=grid, type=given, metavar="RATES", help="a run for each rate, of which the "
        f"selection split keeps the best; without a value: {grid}")  # fmt: skip
    add_budget_flags(parser)
    add("--seed", type=int, metavar="N", help="of head, order and dropout; adapter.seed is that of the masks")
    add(
        "--mixed-precision",
        choices=("auto", "no", "fp16", "bf16"),
        help="default: auto, that is bf16 where the device multiplies it natively",
    )
    add("--output-dir", type=given_path, metavar="DIR", help=f"default: {default_folder}")
    add(
        "--device",
        type=device_name,
        metavar="NAME",
        help="cpu, cuda, cuda:1 or mps (default: a GPU where there is one)",
    )
    add(
        "--tracker",
        choices=TRACKERS,
        default=TRACKERS[0],
        help="where metrics go beside metrics.jsonl (default: tensorboard)",
    )
    add("--quiet", action="store_true", help="print the result's path, warnings and errors only: no bars, no tables")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--config", type=given_path, metavar="FILE", help="a YAML file in place of the default one")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any setting; may be repeated")
    add("--print-config", action="store_true", help="print every setting as it would be used, and train nothing")
    add("-h", "--help", action=Help, run=run)


MAX_SHORTENING = 5  # a recipe that is shortened more than so many times


def say_if_shortened(path: Path, model: str, options: argparse.Namespace) -> None:
    """Say that a recipe's rate was chosen for a far longer run than the one that `--epochs` asks for.

    Not where a rate is given too, or `--set` gives other epochs.
    """
    from capaboost.console import note
    from capaboost.training.processes import is_first
    from capaboost.training.settings import flat, parse_assignments, read_config

    given = flat(parse_assignments(options.set)).keys() & {"train.lr", "train.epochs"}
    epochs, chosen = options.epochs, given or options.lr is not None or options.lr_grid is not None
    recipe = read_config(path, options.method, model).get("train", {}).get("epochs")
    if epochs and not chosen and isinstance(recipe, int) and MAX_SHORTENING * epochs < recipe and is_first():
        note(
            f"--epochs {epochs}: the learning rate of {path.name} was chosen for {recipe} epochs, and so short a run "
            "may need a higher one; --lr RATE sets it, --lr-grid tries several on the rows for selection"
        )


def flag_settings(options: argparse.Namespace, flags: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The flags that were given, by section."""
    settings: dict[str, dict[str, Any]] = {}
    for flag, target in flags.items():
        section, key = target.split(".")
        if getattr(options, flag) is not None:
            settings.setdefault(section, {})[key] = getattr(options, flag)
    return settings


def load_typed(command: str, flags: Raw, options: argparse.Namespace) -> Any:
    """The settings of a run as they were typed: those of a file under the flags, the preset and `--set`.

    Args:
        command: The training command.
        flags: Settings by section.
        options: All flags.

    Raises:
        UserError: If one is wrong.
    """
    from capaboost.console import quiet
    from capaboost.runs.trainings import TRAININGS
    from capaboost.training.processes import is_first
    from capaboost.training.settings import flat, origins, to_dict

    training = TRAININGS[command]
    path = options.config or training.recipe_of(flags, options.method, options.set)
    loaded = training.load(flags, options.method, options.set, path)
    found = origins(path, flags, options.method, options.set)
    with quiet(options.quiet):
        say_if_shortened(path, loaded.model.name, options)
        run = budgeted(loaded, options)
        if not options.print_config and is_first():
            say_what_differs(run.adapter, found)
    before, after = (flat(to_dict(settings)) for settings in (loaded, run))
    options.origins = found | {name: "--budget" for name in after if after[name] != before.get(name)}
    return run


def say_what_differs(adapter: Any, found: Mapping[str, str]) -> None:
    """Say what a recipe changes of the settings that a preset of the same name has in Python.

    Args:
        adapter: The method of a run.
        found: Where the run's settings come from.
    """
    from capaboost.console import note
    from capaboost_core.methods import PRESETS

    preset = PRESETS.get(adapter.label)
    if preset is None:
        return
    mine, theirs = adapter.to_dict(), preset.to_dict()
    files = {name: found.get(f"adapter.{name}", "") for name in mine if mine[name] != theirs.get(name)}
    files = {name: file for name, file in files.items() if file.partition(" for ")[0].endswith((".yaml", ".yml"))}
    if files:
        values = ", ".join(f"{name} {mine[name]} (in Python {theirs.get(name)})" for name in files)
        note(f"{adapter.label} as {' and '.join(dict.fromkeys(files.values()))} has it: {values}")


def run_and_show(command: str, run: Any, options: argparse.Namespace) -> None:
    """Train with the settings, or with each learning rate of the grid, and show the result."""
    if options.print_config:
        return print_settings(run, options.origins)
    from capaboost.console import quiet
    from capaboost.runs.trainings import TRAININGS, train
    from capaboost.training.processes import on_device
    from capaboost.training.run_folder import tracked_by
    from capaboost.training.tuning import parse_rates

    rates = None if options.lr_grid is None else parse_rates(options.lr_grid)
    prepare, folder = TRAININGS[command].prepare, options.output_dir or run.default_folder()
    with quiet(options.quiet), on_device(options.device), tracked_by(options.tracker):
        return train(run, folder, options.resume, prepare, rates)


def print_settings(run: Any, found: Mapping[str, str] | None = None) -> None:
    """The settings as a file that `--config` takes, each on a line.

    Args:
        run: All settings.
        found: Where those that are no defaults come from, by `section.key`, which the lines then say.
    """
    from capaboost.training.settings import to_dict

    for section, values in to_dict(run).items():
        print(f"{section}:")
        for name, value in values.items():
            line, full = f"  {name}: {_on_one_line(value)}", f"{section}.{name}"
            of_it = [origin for key, origin in (found or {}).items() if f"{key}.".startswith(f"{full}.")]
            print(line if found is None else f"{line.ljust(42)}  # {of_it[-1] if of_it else 'default'}")


def _on_one_line(value: Any) -> str:
    import yaml

    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.rstrip()[1:-1]


def exit_code(command: Callable[[], None], stopped: str = "the same command with --resume goes on") -> int:
    """`capaboost.exit_code.exit_code_of`, imported once the flags are read, for threads that suit the load."""
    from capaboost.exit_code import exit_code_of
    from capaboost.training.processes import wait_policy

    if "torch" not in sys.modules:  # whose threads read it once
        os.environ.update(wait_policy())
    return exit_code_of(command, stopped)
