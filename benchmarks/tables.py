"""Make the tables of benchmarks/results/README.md from the result files of the benchmarks.

    python -m benchmarks.make_tables

The tables of a benchmark go between the lines `<!-- step:begin -->` and `<!-- step:end -->`, and so on
for each benchmark, and the ratios in short into the region `summary`; a region without results says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from capaboost.console import markdown_table
from capaboost_core import UserError
from capaboost_core.files import write_atomically

DETAILS = {
    "multiply_adds": ("multiply-adds, G an example", lambda value: f"{value / 1e9:,.2f}"),
    "peak_bytes": ("peak memory, MiB", lambda value: f"{value / 2**20:,.1f}"),
    "held_bytes": ("held for the backward pass, MiB", lambda value: f"{value / 2**20:,.1f}"),
    "trainable_parameters": ("trainable", "{:,}".format),
    "optimizer_bytes": ("AdamW state, bytes", "{:,}".format),
    "file_bytes": ("file, bytes", "{:,}".format),
    "entries": ("adapter entries", "{:,}".format),
    "bytes_per_entry": ("bytes held per entry", "{:.2f}".format),
    "frozen_ms": ("frozen products, ms", "{:.1f}".format),
    "small_ms": ("small products, ms", "{:.1f}".format),
    "small_at_frozen_rate_ms": ("small products at the frozen ones' rate, ms", "{:.1f}".format),
    "copies_ms": ("masked copies, ms", "{:.1f}".format),
    "bytes_moved": ("bytes moved, GB", lambda value: f"{value / 1e9:,.1f}"),
    "launch_ms": ("launches, ms", "{:.1f}".format),
    "memory_ms": ("memory, ms", "{:.1f}".format),
    "arithmetic_ms": ("arithmetic, ms", "{:.1f}".format),
    "device_ms": ("device, ms", "{:.1f}".format),
    "bound": ("bound by", str),
}
SHOWN = {
    "peers": "Time of each peer over that of the frozen model",
    "parts": "Milliseconds that each part of an adapter adds to a step",
}
RATIOS = {  # of the summary, each with the pairs that it may stand for
    "d = 2 / peft": [("capaboost-d2", "peft")],
    "d = 2 / frozen": [("capaboost-d2", "floor"), ("capaboost-d2", "base")],
    "d = 8 / d = 1": [("capaboost-d8", "capaboost-d1")],
    "merged / frozen": [("capaboost-d2-merged", "base")],
    "peft / frozen": [("peft", "floor")],
}


def markdown(result: dict[str, Any]) -> str:
    """Settings and device, the peers, and the ratios."""
    return "\n\n".join([_heading(result), *_figures(result)]) + "\n"


def folded(result: dict[str, Any], picture: str | None) -> str:
    """The same for a page: the tables open at a click, below the picture at a relative address."""
    shown = [f"![{SHOWN[result['plots'][0]]}]({picture})"] if picture else []
    figures = ["<details>\n<summary>All figures</summary>", *_figures(result), "</details>"]
    return "\n\n".join([_heading(result), *shown, *figures]) + "\n"


def summary(results: list[dict[str, Any]]) -> str:
    """A line for each result that has times of peers: medians and quartiles of the ratios."""
    rows = [("what", "where", *RATIOS)]
    for result in (result for result in results if result["unit"] == "s"):
        found = {(ratio["of"], ratio["to"]): ratio for ratio in result["ratios"] if ratio["figure"] is None}
        cells = [next((_in_short(found[pair]) for pair in pairs if pair in found), "") for pairs in RATIOS.values()]
        if any(cells):
            rows.append((_what(result["benchmark"], result["settings"]), _place(result), *cells))
    return _table(rows) + "\n" if len(rows) > 1 else ""


def _in_short(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.3f} ({ratio['quartile_1']:.3f} to {ratio['quartile_3']:.3f})"


def _what(benchmark: str, settings: dict[str, Any]) -> str:
    return f"{benchmark}, {settings['model']}, batch {settings['batch']}, {settings['precision']}, {settings['mode']}"


def _place(result: dict[str, Any]) -> str:
    return result["device"] + (", allocator told to keep memory" if result.get("allocator") else "")


def _heading(result: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    commit = (result["git"]["commit"] or "unknown")[:10] + (" with changes" if result["git"]["dirty"] else "")
    allocator = "".join(f", {name}={value}" for name, value in result.get("allocator", {}).items())
    where = f"{result['device']}, {result['processor']}, {result['threads']} threads{allocator}"
    return f"**{settings}**\n\n{where}. {versions}. Commit {commit}."


def _figures(result: dict[str, Any]) -> list[str]:
    return [_peers(result), _ratios(result["ratios"])] if result["ratios"] else [_peers(result)]


def _peers(result: dict[str, Any]) -> str:
    peers = result["peers"]
    shown = {key: title for key, (title, _) in DETAILS.items() if any(key in peer for peer in peers.values())}
    counted = result["settings"]["repeats"] == 1  # or measured once: no spread
    heads = [result["unit"]] if counted else [f"median, {result['unit']}", "quartiles"]
    rows = [("peer", *heads, *shown.values())]
    for name, peer in peers.items():
        values = [_number(peer["median"])] if counted else [_number(peer["median"]), _quartiles(peer)]
        details = (DETAILS[key][1](peer[key]) if key in peer else "" for key in shown)
        rows.append((name, *values, *details))
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
    return markdown_table(head, body).rstrip("\n")


BENCHMARKS = ("step", "parts", "inference", "launches", "memory", "masks", "whole_run", "imports", "sparse")
NOTHING = "Not measured yet.\n"
KEYS = ("benchmark", "settings", "unit", "peers", "ratios", "device", "processor", "threads", "versions", "git")


def read_results(folder: Path) -> dict[Path, dict[str, Any]]:
    """Every result of the folder by its file, in the order of their names.

    Raises:
        UserError: If a file is not a result.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not readable JSON; delete it or run its benchmark again") from error
        lacking = [key for key in KEYS if not isinstance(result, dict) or key not in result]
        if lacking:
            raise UserError(f"{path} lacks {', '.join(lacking)}; delete it or run its benchmark again")
        results[path] = result
    return results


def fill(text: str, results: dict[Path, dict[str, Any]], page: Path) -> str:
    """The text with the summary and each benchmark's tables in its region.

    Raises:
        UserError: If a region is missing.
    """
    for name, content in _regions(results, page).items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UserError(f"{page} has no place for {name}; add the lines {begin} and {end}")
        text = f"{before}{begin}\n\n{content or NOTHING}\n{end}{after}"
    return text


def _regions(results: dict[Path, dict[str, Any]], page: Path) -> dict[str, str]:
    parts: dict[str, list[str]] = {name: [] for name in BENCHMARKS}
    for path, result in results.items():
        picture = _picture(path, page) if result.get("plots") else None
        parts.setdefault(result["benchmark"], []).append(folded(result, picture))
    return {"summary": summary(list(results.values()))} | {name: "\n".join(part) for name, part in parts.items()}


def _picture(path: Path, page: Path) -> str:
    """What `capaboost plots` draws of the result, as the page finds it."""
    return Path(os.path.relpath(path.with_suffix(".svg"), page.parent)).as_posix()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--page", type=Path, default=Path("benchmarks/results/README.md"), metavar="FILE")
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
