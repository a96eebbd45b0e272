"""Make tables from the result.json files of finished runs.

    python tools/make_tables.py results --markdown results/tables.md --csv results/tables.csv --readme README.md

Runs that differ in nothing but their seeds become one row: mean and sample standard deviation. With
`--readme` the table goes between the lines `<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os.path
import statistics
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from command_line import answer
from outputs import check_outputs
from rich.table import Table
from row_settings import PLACES, differences, has_rank, settings_of

from capaboost_core import UserError
from capaboost_core.console import show_table
from capaboost_core.errors import reason_of, shown
from capaboost_core.files import write_atomically

TEXTS = ("task", "model", "method", "protocol", "metric", "device")
NUMBERS = ("seed", "value", "trainable_parameters", "percent_trainable", "epochs")
LARGEST = 1e300  # what a float holds, and no infinity or NaN
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
TITLES = ("task", "model", "method", "settings", "protocol", "value")
TITLES += ("trainable", "% trainable", "epochs", "device", "split")


@dataclass(frozen=True)
class Row:
    """One line of the table; its fields are the columns of the CSV file."""

    task: str
    model: str
    method: str
    settings: str
    protocol: str
    metric: str
    mean: float
    std: float | None
    seeds: int
    trainable_parameters: int
    percent_trainable: float
    epochs: int
    device: str
    split_note: str

    def cells(self) -> tuple[str, ...]:
        """The row as a reader sees it, in the order of TITLES."""
        runs = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        spread = "" if self.std is None else f" ± {self.std:.2g}"
        value = f"{self.metric} {self.mean:.4g}{spread} ({runs})"
        counts = (f"{self.trainable_parameters:,}", f"{self.percent_trainable:.2f}", f"{self.epochs:g}")
        what = (self.task, self.model, self.method, self.settings, self.protocol)
        return (*what, value, *counts, self.device, self.split_note)


def read_results(folders: list[Path]) -> dict[Path, dict[str, Any]]:
    """Every result.json under the folders, checked.

    Raises:
        UserError: If there is none, or one is malformed.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"there is no folder {shown(str(folder))}; give one that holds runs")
    paths = sorted({path for folder in folders for path in folder.rglob("result.json")})
    if not paths:
        raise UserError(f"no result.json under {', '.join(map(str, folders))}; run tools/train_vtab.py first")
    return {path: _read(path) for path in paths}


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON; delete the file or run its task again") from error
    if not isinstance(result, dict):
        raise UserError(f"{path} holds no result; delete the file or run its task again")
    wrong = [name for name in TEXTS if not isinstance(result.get(name), str)]
    wrong += [name for name in NUMBERS if not _is_number(result.get(name))]
    wrong += [] if isinstance(result.get("split_note") or "", str) else ["split_note"]
    wrong += _wrong_settings(result.get("config", {}))
    if wrong:
        raise UserError(f"{path} lacks a usable {', '.join(wrong)}; delete the file or run its task again")
    return result


def _wrong_settings(config: Any) -> list[str]:
    """Names of the settings that `settings_of` cannot show."""
    if not isinstance(config, dict):
        return ["config"]
    sections = {name: config.get(name, {}) for name in ("model", "train", "adapter")}
    if wrong := [f"config.{name}" for name, section in sections.items() if not isinstance(section, dict)]:
        return wrong
    train, adapter = sections["train"], sections["adapter"]
    wrong = [] if _is_number(train.get("lr", 0)) else ["config.train.lr"]
    if has_rank(adapter):
        wrong += [] if _is_number(adapter.get("r")) else ["config.adapter.r"]
        wrong += [] if adapter.get("alpha") is None or _is_number(adapter["alpha"]) else ["config.adapter.alpha"]
    return wrong


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def make_rows(results: dict[Path, dict[str, Any]]) -> list[Row]:
    """Group the results by all but their seeds.

    Raises:
        UserError: If two files are the same run, which would count one seed twice.
    """
    groups: dict[str, dict[str, Path]] = {}
    for path, result in results.items():
        runs = groups.setdefault(_fingerprint(result, PLACES), {})
        run = _fingerprint(result, PLACES[1:])
        if run in runs:
            raise UserError(f"{path} and {runs[run]} are the same run with the same seed; delete one")
        runs[run] = path
    grouped = [[results[path] for path in runs.values()] for runs in groups.values()]
    rows = [_row(runs, differences(runs[0], [others[0] for others in grouped])) for runs in grouped]
    return sorted(rows, key=lambda row: (row.task, row.model, row.protocol, row.method, row.percent_trainable))


def _fingerprint(result: dict[str, Any], dropped: tuple[str, ...]) -> str:
    """What makes two runs comparable, as text."""
    shown = (*TEXTS, "trainable_parameters", "epochs", "split_note", "seed", "config")
    return json.dumps(_without({name: result.get(name) for name in shown}, dropped), sort_keys=True)


def _without(value: Any, dropped: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, dropped) for key, inner in value.items() if key not in dropped}
    return value


def _row(runs: list[dict[str, Any]], differing: list[str]) -> Row:
    values = [float(run["value"]) for run in runs]
    first = {name: runs[0].get(name) for name in (field.name for field in fields(Row))}
    std = statistics.stdev(values) if len(values) > 1 else None
    first["settings"] = ", ".join(filter(None, (settings_of(runs[0].get("config", {})), *differing)))
    note = first["split_note"] or ""
    return Row(**first | {"mean": statistics.fmean(values), "std": std, "seeds": len(runs), "split_note": note})


def to_markdown(rows: list[Row]) -> str:
    lines = [TITLES, ("---",) * len(TITLES), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n" for cells in lines)


def to_csv(rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue()


def fill(path: Path, table: str) -> str:
    """The text of the file with the table between its markers.

    Raises:
        UserError: If the file cannot be read, or the markers are not there in this order.
    """
    try:
        before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}; give the path of a text file") from error
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path} has no place for the table; add the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def show(rows: list[Row]) -> None:
    table = Table()
    for title in TITLES:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row.cells())
    show_table(table)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("results")], help="default: results")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV, with raw numbers")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="replace the table between the markers")
    return parser.parse_args(arguments)


def make(options: argparse.Namespace) -> None:
    """Read all, show the table, write it where that is asked for."""
    for flag in ("markdown", "csv", "readme"):
        check_outputs(f"--{flag}", getattr(options, flag))
    rows = make_rows(read_results(options.folders))
    outputs = {options.markdown: to_markdown(rows), options.csv: to_csv(rows)}
    if options.readme:
        outputs[options.readme] = fill(options.readme, to_markdown(rows))
    show(rows)
    for path, text in outputs.items():
        if path:
            write_atomically(path, lambda file, text=text: file.write(text.encode()))


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return answer(lambda: make(options), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
