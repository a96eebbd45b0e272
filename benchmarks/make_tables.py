"""Make the tables of docs/performance.md from the result files of the benchmarks.

    python benchmarks/make_tables.py

The tables of a benchmark go between the lines `<!-- step:begin -->` and `<!-- step:end -->`, and so on
for each benchmark; a region without result files says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from capaboost_core import UserError
from capaboost_core.files import write_atomically

BENCHMARKS = ("step", "inference", "masks", "whole_run", "sparse")
KEYS = ("benchmark", "settings", "unit", "peers", "ratios", "device", "processor", "threads", "versions", "git")
DETAILS = {
    "multiply_adds": ("multiply-adds, G an example", lambda value: f"{value / 1e9:,.2f}"),
    "peak_bytes": ("peak memory, MiB", lambda value: f"{value / 2**20:,.1f}"),
    "trainable_parameters": ("trainable", "{:,}".format),
    "optimizer_bytes": ("AdamW state, bytes", "{:,}".format),
    "file_bytes": ("file, bytes", "{:,}".format),
    "entries": ("adapter entries", "{:,}".format),
    "bytes_per_entry": ("bytes held per entry", "{:.2f}".format),
}


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every result file of the folder, in the order of their names.

    Raises:
        UserError: If a file is no result.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not readable JSON; delete it or run its benchmark again") from error
        lacking = [key for key in KEYS if not isinstance(result, dict) or key not in result]
        if lacking:
            raise UserError(f"{path} lacks {', '.join(lacking)}; delete it or run its benchmark again")
        results.append(result)
    return results


def markdown(results: list[dict[str, Any]]) -> str:
    """For each result: what ran where, the peers, and the ratios."""
    return "\n".join(_section(result) for result in results)


def _section(result: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    commit = (result["git"]["commit"] or "unknown")[:10] + (" with changes" if result["git"]["dirty"] else "")
    allocator = "".join(f", {name}={value}" for name, value in result.get("allocator", {}).items())
    where = f"{result['device']}, {result['processor']}, {result['threads']} threads{allocator}"
    parts = [f"**{settings}**", f"{where}. {versions}. Commit {commit}.", _peers(result)]
    return "\n\n".join(parts + ([_ratios(result["ratios"])] if result["ratios"] else [])) + "\n"


def _peers(result: dict[str, Any]) -> str:
    peers = result["peers"]
    shown = {key: title for key, (title, _) in DETAILS.items() if any(key in peer for peer in peers.values())}
    rows = [("peer", f"median, {result['unit']}", "quartiles", *shown.values())]
    for name, peer in peers.items():
        details = (DETAILS[key][1](peer[key]) if key in peer else "" for key in shown)
        rows.append((name, _number(peer["median"]), _quartiles(peer), *details))
    return _table(rows)


def _ratios(ratios: list[dict[str, Any]]) -> str:
    rows = [("ratio", "median", "quartiles", "aim", "met")]
    for ratio in ratios:
        met = {None: "", True: "yes", False: "no"}[ratio["met"]]
        figure = f", {DETAILS[ratio['figure']][0].partition(',')[0]}" if ratio["figure"] else ""
        what = f"{ratio['of']} / {ratio['to']}{figure}"
        rows.append((what, f"{ratio['median']:.3f}", "" if figure else _quartiles(ratio), _aim(ratio), met))
    return _table(rows)


def _aim(ratio: dict[str, Any]) -> str:
    low, high = ratio["low"], ratio["high"]
    if low is not None and high is not None:
        return f"{low:.2f} to {high:.2f}"
    return f"≤ {high:.2f}" if high is not None else f"≥ {low:.2f}" if low is not None else ""


def _quartiles(spread: dict[str, Any]) -> str:
    return f"{_number(spread['quartile_1'])} to {_number(spread['quartile_3'])}"


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= value < 100 else f"{value:.4g}"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *body))


def fill(text: str, results: list[dict[str, Any]], path: Path) -> str:
    """The text with each benchmark's tables in its region.

    Raises:
        UserError: If a region is missing.
    """
    for name in BENCHMARKS:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UserError(f"{path} has no place for {name}; add the lines {begin} and {end}")
        tables = markdown([result for result in results if result["benchmark"] == name]) or "Not measured yet.\n"
        text = f"{before}{begin}\n\n{tables}\n{end}{after}"
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"), metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        text = options.page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {options.page}: {error.strerror}; pass --page FILE") from error
    filled = fill(text, read_results(options.results), options.page)
    write_atomically(options.page, lambda file: file.write(filled.encode()))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
