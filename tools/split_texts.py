"""Rows to train, select and test on, drawn from GLUE's sentences or SQuAD's questions, as TSV files.

    python tools/split_texts.py data/glue sst2 data/splits/sst2 --train 1000 --selection 1000 --test 2000
    python tools/split_texts.py data/squad articles data/splits/articles --train 1000 --selection 500 --test 1888
    capaboost sweep configs/sweeps/evidence-text.yaml

GLUE's dev is too small to tell methods apart by a point (872 sentences of SST-2), and most training rows are not
needed: the rows to test on are all of dev, and rows of the training file that neither train nor select. `articles` is
to tell of which of the first 16 articles of SQuAD's dev a question is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout that is not installed

from capaboost.exit_code import exit_code_of
from capaboost_core.errors import UserError, reason_of
from capaboost_core.files import write_atomically
from capaboost_text.encode import Example, permutation
from capaboost_text.glue.data import load_split
from capaboost_text.glue.tasks import TASKS

TITLE, _, DETAILS = str(__doc__).partition("\n\n")
ARTICLES, FILE, CLASSES = "articles", "dev-v1.1.json", 16
NAMES = [*(name for name, task in TASKS.items() if len(task.texts) == 1), ARTICLES]  # of one text a row


def read(data: Path, task: str) -> tuple[list[Example], list[Example]]:
    """The rows to draw from, and those that are tested on in any case.

    Raises:
        UserError: If the data cannot be read.
    """
    if task != ARTICLES:
        return load_split(task, data, "train"), load_split(task, data, TASKS[task].dev)
    try:
        articles = json.loads((data / FILE).read_text(encoding="utf-8"))["data"][:CLASSES]
        asked = [(entry["question"], label) for label, article in enumerate(articles)
                 for paragraph in article["paragraphs"] for entry in paragraph["qas"]]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {data / FILE}: {reason_of(error)}; give the folder of SQuAD's files") from error
    return [Example(" ".join(question.split()), None, label) for question, label in asked], []


def split(data: Path, task: str, counts: dict[str, int]) -> dict[str, list[Example]]:
    """The rows of each part.

    Raises:
        UserError: If the data cannot be read, or there are too few rows.
    """
    rows, tested = read(data, task)
    if sum(counts.values()) > len(rows) or min(counts.values()) < 1:
        raise UserError(f"{task} has {len(rows):,} rows to draw; ask for so many at most, and one of each part")
    order = iter(permutation(len(rows)))
    parts = {name: [rows[next(order)] for _ in range(count)] for name, count in counts.items()}
    return parts | {"test": parts["test"] + tested}


def as_tsv(rows: list[Example]) -> str:
    """A header, and a text and its class a line, without quoting, as GLUE's files are."""
    cells = [("sentence", "label"), *((row.text, row.label) for row in rows)]
    return "".join(f"{text}\t{label}\n" for text, label in cells)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=TITLE, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="folder with the original GLUE folders, or with SQuAD's files")
    add("task", choices=NAMES)
    add("output", type=Path, metavar="OUT", help="where train.tsv, selection.tsv and test.tsv are written")
    for name, count in (("train", 1000), ("selection", 1000), ("test", 2000)):
        add(f"--{name}", type=int, default=count, metavar="N", help=f"rows to draw for it (default: {count})")
    options = parser.parse_args(arguments)
    counts = {name: getattr(options, name) for name in ("train", "selection", "test")}

    def run() -> None:
        for name, rows in split(options.data, options.task, counts).items():
            path, text = options.output / f"{name}.tsv", as_tsv(rows)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file, text=text: file.write(text.encode()))
            print(f"{path}: {len(rows):,} rows")

    return exit_code_of(run, "the files that were named are written")


if __name__ == "__main__":
    raise SystemExit(main())
