"""Rows of a GLUE task to train, select and test on, drawn from its training and dev files, as TSV files.

    python tools/split_glue.py data/glue cola data/splits/cola --train 2000 --selection 1000 --test 5000
    capaboost sweep configs/sweeps/evidence-text.yaml

Dev is too small to tell methods apart by a point (872 sentences of SST-2), and most training rows are not needed: the
rows to test on are all of dev, and rows of the training file that neither train nor select.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from capaboost_core.errors import UserError
from capaboost_core.files import write_atomically
from capaboost_text.encode import Example, permutation
from capaboost_text.glue.data import load_split
from capaboost_text.glue.tasks import TASKS

TITLE, _, DETAILS = str(__doc__).partition("\n\n")
SINGLE = [name for name, task in TASKS.items() if len(task.texts) == 1]  # of one sentence a row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=TITLE, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="folder with the original GLUE folders")
    add("task", choices=SINGLE)
    add("output", type=Path, metavar="OUT", help="where train.tsv, selection.tsv and test.tsv are written")
    for name, count in (("train", 2000), ("selection", 1000), ("test", 5000)):
        add(f"--{name}", type=int, default=count, metavar="N", help=f"rows of the training file (default: {count})")
    options = parser.parse_args()
    counts = {"train": options.train, "selection": options.selection, "test": options.test}
    try:
        parts = split(options.data, options.task, counts)
    except UserError as error:
        parser.error(str(error))
    for name, rows in parts.items():
        text = as_tsv(rows)
        write_atomically(options.output / f"{name}.tsv", lambda file, text=text: file.write(text.encode()))
        print(f"{options.output / name}.tsv: {len(rows):,} rows")


def split(data: Path, task: str, counts: dict[str, int]) -> dict[str, list[Example]]:
    """The rows of each part; those of dev are among those to test on.

    Raises:
        UserError: If the data cannot be read, or there are too few rows.
    """
    rows = load_split(task, data, "train")
    if sum(counts.values()) > len(rows) or min(counts.values()) < 1:
        raise UserError(f"{task} has {len(rows):,} training rows; ask for so many at most, and one of each part")
    order, parts = iter(permutation(len(rows))), {}
    for name, count in counts.items():
        parts[name] = [rows[next(order)] for _ in range(count)]
    parts["test"] += load_split(task, data, TASKS[task].dev)
    return parts


def as_tsv(rows: list[Example]) -> str:
    """A header, and a sentence and its class a line, without quoting, as GLUE's files are."""
    return "".join(
        f"{text}\t{label}\n" for text, label in (("sentence", "label"), *((row.text, row.label) for row in rows))
    )


if __name__ == "__main__":
    main()
