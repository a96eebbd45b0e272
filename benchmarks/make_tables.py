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
from pathlib import Path
from typing import Any

from benchmarks.tables import folded, summary
from capaboost_core import UserError
from capaboost_core.files import write_atomically

BENCHMARKS = ("step", "parts", "inference", "launches", "memory", "masks", "whole_run", "sparse")
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
    """What `tools/make_plots.py` draws of the result, as the page finds it."""
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
