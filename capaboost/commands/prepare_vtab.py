"""Download and prepare sets of VTAB-1k, once, for `train-vtab --dataset TASK`.

Examples:
  capaboost prepare-vtab                      # the sets, and which of them are there
  capaboost prepare-vtab dtd cifar
  capaboost prepare-vtab --all --data-dir /data/tfds

It needs TensorFlow, which training does not: pip install '.[prepare]' in the checkout. Two sets are downloaded by
hand; it says from where and into which folder. docs/vtab.md has a line for each set.
"""

from __future__ import annotations

import argparse

from capaboost.command_line import exit_code, given, make_parser
from capaboost.runs.vtab1k import SETS, PreparedSet, find_sets, is_prepared, missing_by_hand, tfds_folder
from capaboost_core.errors import UserError
from capaboost_core.extras import need


def prepare_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    add("datasets", nargs="*", type=given, metavar="DATASET", help="tasks of VTAB-1k; none: list them all")
    add("--all", action="store_true", help="prepare every set")
    add("--data-dir", type=given, metavar="DIR", help="where the data go (default: $TFDS_DATA_DIR, or "
        "~/tensorflow_datasets)")  # fmt: skip
    return parser


def show(data_dir: str | None) -> None:
    """A table of the sets and their state."""
    from rich.table import Table

    from capaboost.console import show_table

    table = Table("task", "download", "prepared", title=f"VTAB-1k in {tfds_folder(data_dir)}")
    for found in SETS:
        size = "by hand" if found.address else found.size
        table.add_row(", ".join(found.tasks), size, "yes" if is_prepared(found, data_dir) else "no")
    show_table(table)


def prepare(options: argparse.Namespace) -> None:
    """Prepare one set after the other; what fails is named, and the others are prepared.

    Raises:
        UserError: If a name is unknown, or a set could not be prepared.
    """
    if options.all and options.datasets:
        raise UserError("--all is given beside names; drop one of them")
    chosen = list(SETS) if options.all else find_sets(options.datasets)
    if not chosen:
        return show(options.data_dir)
    if not all(is_prepared(found, options.data_dir) for found in chosen):
        need("tensorflow", "prepare", "preparations")  # builders notice after the download, or minutes of retries
    failed = [found for found in chosen if not _prepare_one(found, options.data_dir)]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(chosen)} sets not prepared: {', '.join(found.tasks[0] for found in failed)}"
        )


def _prepare_one(found: PreparedSet, data_dir: str | None) -> bool:
    """Prepare a set unless it is there; print where it is, or why it could not be."""
    from capaboost.console import tell

    try:
        print(f"{', '.join(found.tasks)}: {_folder_of(found, data_dir)}", flush=True)
    except UserError as error:
        tell(f"not prepared: {error}")
        return False
    return True


def _folder_of(found: PreparedSet, data_dir: str | None) -> str:
    if not is_prepared(found, data_dir) and (line := missing_by_hand(found, data_dir)):
        raise UserError(line)
    from capaboost_vision.vtab.tasks import TASKS
    from capaboost_vision.vtab.tfds import prepare as prepare_set

    return prepare_set(TASKS[found.tasks[0]], data_dir)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = prepare_parser(prog).parse_args(arguments)
    return exit_code(lambda: prepare(options), "the same command goes on")
