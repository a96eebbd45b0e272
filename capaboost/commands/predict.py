"""Predict with a trained run: classes and their probabilities of images or texts, or how texts go on.

Examples:
  capaboost predict runs/vtab/photos/capaboost_vit_micro_patch8_64/capaboost-lora-seed42 new/ other/1.jpg
  capaboost predict RUN new/ --top 3 --csv predictions.csv
  capaboost predict RUN reviews.txt                        # a text a line
  capaboost predict RUN reviews.csv                        # the column that it was trained on
  capaboost predict RUN other.csv --column review          # another, or two of a pair: --column a,b
  capaboost predict RUN prompts.jsonl --column prompt --max-new-tokens 32 --json answers.json   # of train-lm

An input is an image, a folder of images, a file of texts with one a line (.txt), a column of a table (.csv, .tsv,
.jsonl), or `-`: one path or text a line from the standard input.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from capaboost.command_line import at_least_one, device_name, exit_code, given, given_path, make_parser
from capaboost_core.errors import UserError

if TYPE_CHECKING:
    from capaboost.inference import ImageRun, TextRun

SHOWN = 50  # rows of the table on the screen
LEAST = 16  # characters of an input in it, of which a narrow terminal shows the end
LONGEST = 48  # characters of a continuation in it
CONTINUATION = "continuation"  # the column of a language model
TABLES = (".csv", ".tsv", ".jsonl")


def predict_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    add("run", type=given_path, metavar="RUN", help="a run's folder, or the adapter folder in it")
    add("inputs", nargs="+", metavar="INPUT", help="images, folders, .txt or .csv files, or - for standard input")
    add("--top", type=at_least_one, default=1, metavar="K", help="show the K most probable classes (default: 1)")
    add("--column", type=given, metavar="NAME", help="the column of a table; two, with a comma, for pairs of texts "
        "(default: as in training)")  # fmt: skip
    add("--max-new-tokens", type=at_least_one, metavar="N", help="of a language model (default: 64)")
    add("--csv", type=given_path, metavar="FILE", help="write input, class, probability, and so on for the next")
    add("--json", type=given_path, metavar="FILE", help="write the same as a list of objects")
    add("--base", type=given, metavar="PATH", help="where the frozen model is now, if not where it was in training")
    add("--quiet", action="store_true", help="no bar and no table; with --csv or --json")
    add("--device", type=device_name, default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: cpu)")
    add("--merge", action="store_true", help="sum the delta weights into the frozen ones first")
    return parser


def predict(options: argparse.Namespace) -> None:
    """Predict, show the first rows, and write what was asked for."""
    from capaboost.console import check_outputs, quiet

    check_outputs("--csv", options.csv)
    check_outputs("--json", options.json)
    for name in options.inputs:  # before the model is loaded
        if name != "-" and not Path(name).exists():
            raise UserError(f"there is no {name}; give images, folders of images, .txt or .csv files")
    from capaboost.inference import GenerationRun, ImageRun, load_run

    with quiet(options.quiet):
        run = load_run(options.run, options.base, options.device, options.merge)
        items = image_paths(options) if isinstance(run, ImageRun) else texts_of(options, run.columns)
        if not items:
            raise UserError("the inputs are empty; give images or texts")
        if isinstance(run, GenerationRun):
            made = run.predict([str(item) for item in items], shown=True, max_new_tokens=options.max_new_tokens or 64)
            rows = [{"input": item, CONTINUATION: text} for item, text in zip(items, made, strict=True)]
        elif options.max_new_tokens is not None:
            raise UserError("--max-new-tokens is for runs of train-lm; leave it out")
        else:
            rows = ranked(run, items, options.top)
        write(rows, options)
        show(rows)


def image_paths(options: argparse.Namespace) -> list[str]:
    """The images that the inputs name, those of a folder in alphabetical order.

    Raises:
        UserError: If a folder holds no image, or a table no such column.
    """
    from capaboost_vision.vtab.own import is_image

    paths: list[str] = []
    for name in options.inputs:
        path = Path(name)
        if name == "-":
            paths += [line for line in sys.stdin.read().splitlines() if line.strip()]
        elif path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if file.is_file() and is_image(file))
            if not found:
                raise UserError(f"{path} holds no image; give images, or a folder of them")
            paths += found
        elif path.suffix.lower() in TABLES:
            paths += [str(path.parent / cell) for cell in column_of(path, options.column or "path")]
        else:
            paths.append(name)
    return paths


def texts_of(options: argparse.Namespace, columns: Sequence[str]) -> list[str | tuple[str, str]]:
    """The texts that the inputs hold, or pairs for a model that was trained on pairs.

    Args:
        options: Inputs, and the columns of tables.
        columns: Those of training, which a table has unless `--column` names others.

    Raises:
        UserError: If an input cannot be read, or has another number of columns.
    """
    texts: list[str | tuple[str, str]] = []
    for name in options.inputs:
        path = Path(name)
        if path.suffix.lower() in TABLES:
            named = options.column.split(",") if options.column else columns
            if len(named) != len(columns):
                raise UserError(f"the run was trained on {' and '.join(columns)}; give --column as many names")
            cells = [column_of(path, column) for column in named]
            texts += zip(*cells, strict=True) if len(columns) == 2 else cells[0]
        elif len(columns) == 2:
            raise UserError(
                f"the run was trained on pairs of texts; give a .csv or .tsv file with --column A,B, not {name}"
            )
        else:
            texts += _lines(name)
    return texts


def _lines(name: str) -> list[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {name} as text in UTF-8; give a .txt, .csv or .tsv file") from error
    return [line for line in text.split("\n") if line.strip()]  # other line ends may stand within a text


def column_of(path: Path, column: str) -> list[str]:
    """A column of a table by its name, read as in training.

    Raises:
        UserError: If the table cannot be read, lacks the column, or has a row without a text in it.
    """
    from capaboost_text.table_file import AGAIN, MissingColumn, read_json_rows, read_rows

    read = read_json_rows if path.suffix.lower() == ".jsonl" else read_rows
    try:
        rows = read(path, (column,))
    except MissingColumn as error:
        raise UserError(f"{str(error).removesuffix(AGAIN)}name one of these by --column") from error
    for line, (cell,) in rows:
        if not isinstance(cell, str) or not cell.strip():
            fault = "no text" if cell else "empty"
            raise UserError(f"{path}, line {line}: {column} is {fault}; correct it, or leave the row out")
    return [cell for _, (cell,) in rows]


def ranked(run: ImageRun | TextRun, items: Sequence[Any], top: int) -> list[dict[str, Any]]:
    """A row for each input: its most probable classes with their probabilities, or the number of a regression."""
    values = run.predict(items, shown=True)
    names = [" | ".join(item) if isinstance(item, tuple) else item for item in items]
    if not run.classes:
        return [{"input": name, "value": float(value)} for name, value in zip(names, values[:, 0], strict=True)]
    best = values.topk(min(top, len(run.classes)), dim=1)
    rows = []
    for name, probabilities, labels in zip(names, best.values.tolist(), best.indices.tolist(), strict=True):
        row: dict[str, Any] = {"input": name}
        for rank, (probability, label) in enumerate(zip(probabilities, labels, strict=True), start=1):
            suffix = "" if rank == 1 else f"_{rank}"
            row |= {f"class{suffix}": run.classes[label], f"probability{suffix}": probability}
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The first rows as a table."""
    from tabulate import tabulate

    table = partial(tabulate, headers="keys", floatfmt=".3f", disable_numparse=[0])
    first = [row | {name: _shortened(row[name]) for name in row.keys() & {CONTINUATION}} for row in rows[:SHOWN]]
    inputs = [row["input"] for row in first]
    others = table([row | {"input": ""} for row in first])
    room = max(LEAST, get_terminal_size().columns - max(map(len, others.splitlines())) + len("input"))
    ends = [text if len(text) <= room else "..." + text[3 - room :] for text in inputs]
    print(table([row | {"input": end} for end, row in zip(ends, first, strict=True)]))
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN:,} more; --csv FILE writes all")


def _shortened(text: str) -> str:
    """The beginning of a text of several lines, on one."""
    return textwrap.shorten(text, LONGEST, placeholder=" ...")


def write(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """The files that were asked for."""
    from capaboost_core.files import write_atomically

    if options.csv:
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(options.csv, lambda file: file.write(text.getvalue().encode()))
    if options.json:
        listing = json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n"
        write_atomically(options.json, lambda file: file.write(listing.encode()))


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    parser = predict_parser(prog)
    options = parser.parse_args(arguments)
    if options.quiet and not (options.csv or options.json):
        parser.error("--quiet shows no table; add --csv FILE or --json FILE")
    return exit_code(lambda: predict(options), "run the same command again")
