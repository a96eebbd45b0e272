"""Write the tables of docs/published.md from results/paper: published results with means that are computed alike.

    python docs/make/published.py

The rows of VTAB-1k get the means of `capaboost tables`; a row whose scores by task were not found gets none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from capaboost.console import markdown_table
from capaboost.tables.rows import vtab_means
from capaboost.tables.write import fill
from capaboost_core.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
PAGE, PAPER = ROOT / "docs" / "published.md", ROOT / "results" / "paper"
VTAB_MEANS = {"19": "mean of 19", "groups": "mean of groups", "12": "mean of CapaBoost's 12"}
GLUE_MEANS = {"8": "mean of 8", "8, F1": "mean of 8, F1", "all numbers": "of all numbers", "6": "mean of 6"}
PROTOCOL = ("copy", "normalisation", "tuning")  # of VTAB-1k's rows
AVERAGES = {"table-05": "12", "capaboost-readme": "all numbers"}  # what a table's own average is of, if not all 8
TASKS = {  # by their names in Table 5
    "CIFAR-100": "cifar", "DTD": "dtd", "Flower102": "oxford_flowers102", "Pets": "oxford_iiit_pet", "SVHN": "svhn",
    "Eurosat": "eurosat", "Resisc45": "resisc45", "Clevr-Count": "clevr_count", "Clevr-Dist": "clevr_dist",
    "DMLab": "dmlab", "dSpr-Ori": "dsprites_ori", "sNORB-Azim": "smallnorb_azi",
}  # fmt: skip
Row = dict[str, Any]


def vtab_rows() -> list[Row]:
    """The rows in the order of the file, with `scores` by task and `means` by what they are of."""
    table = _read("published-vtab")
    rows = []
    for row in map(_completed, table["rows"]):
        given = row.get("scores", {})
        scores: dict[str, float] = dict(zip(table["tasks"], given, strict=True)) if isinstance(given, list) else given
        scores = {TASKS.get(task, task): score for task, score in scores.items()}
        found = vtab_means(scores)
        means = {of: found[name] for of, name in VTAB_MEANS.items() if name in found}
        rows.append(row | {"scores": scores, "means": means})
    return rows


def glue_rows() -> list[Row]:
    """The rows in the order of the file, with `scores` by task and `means` by what they are of."""
    return [row | {"means": glue_means(row["scores"])} for row in map(_completed, _read("published-glue")["rows"])]


def glue_means(scores: Mapping[str, Any]) -> dict[str, float]:
    """The means of a row, as far as it has their numbers: of 8 tasks, with F1, of all numbers, without MNLI and QQP.

    A score is a number, or a pair: accuracy and F1 (MRPC, QQP), Pearson's and Spearman's correlation (STS-B).
    """
    pairs = {task: score if isinstance(score, list) else [score] for task, score in scores.items()}
    first = {task: pair[0] for task, pair in pairs.items()}
    with_f1 = {task: pair[-1] if task in ("MRPC", "QQP") else pair[0] for task, pair in pairs.items()}
    everything = [number for pair in pairs.values() for number in pair]
    numbers = {
        "8": [*first.values()],
        "8, F1": [*with_f1.values()] if len(pairs.get("MRPC", ())) == len(pairs.get("QQP", ())) == 2 else [],
        "all numbers": everything,
        "6": [score for task, score in first.items() if task not in ("MNLI", "QQP")],
    }
    least = {"8": 8, "8, F1": 8, "all numbers": 11, "6": 6}
    return {of: fmean(found) for of, found in numbers.items() if len(found) >= least[of] and None not in found}


def vtab_table() -> str:
    titles = ("", "method", "trained, M", *VTAB_MEANS.values(), "CIFAR-100", *PROTOCOL, "printed")
    rows = vtab_rows()
    return markdown_table(titles, map(_vtab_cells, range(1, len(rows) + 1), rows)) + _sources(rows)


def _vtab_cells(number: int, row: Row) -> tuple[object, ...]:
    means = (_number(row["means"].get(of)) for of in VTAB_MEANS)
    what = (number, row["name"], _number(row["trained_millions"]))
    return (*what, *means, _number(row["scores"].get("cifar")), *(row[name] for name in PROTOCOL), _printed(row))


def glue_table() -> str:
    titles = ("", "method", "model", "trained", *GLUE_MEANS.values(), "printed", "protocol")
    rows = glue_rows()
    protocols = "".join(f"- {name}: {text}.\n" for name, text in _read("published-glue")["protocols"].items())
    table = markdown_table(titles, map(_glue_cells, range(1, len(rows) + 1), rows))
    return f"{table}\n{protocols}{_sources(rows)}"


def _glue_cells(number: int, row: Row) -> tuple[object, ...]:
    means = (_number(row["means"].get(of)) for of in GLUE_MEANS)
    return (number, row["name"], row["model"], row["trained"] or "", *means, _printed(row), row["protocol"])


def main() -> None:
    for region, table in (("vtab", vtab_table()), ("glue", glue_table())):
        text = fill(PAGE, table, region)
        write_atomically(PAGE, lambda file, text=text: file.write(text.encode()))


def _read(name: str) -> dict[str, Any]:
    return json.loads((PAPER / f"{name}.json").read_text(encoding="utf-8"))


def _completed(row: Row) -> Row:
    """The row; one that is of a table of the paper with the scores and the average that stand there."""
    if "row_of" not in row:
        return row
    (found,) = [other for other in _read(row["row_of"])["rows"] if other["name"] == row.get("row", row["name"])]
    scores = {task: score["mean"] if isinstance(score, dict) else score for task, score in found["scores"].items()}
    ((title, average),) = [(title, scores.pop(title)) for title in ("Average", "All", "Avg") if title in scores]
    printed = {"mean": f"{average:.2f}", "of": AVERAGES.get(row["row_of"], "8"), "in": "the same table"}
    slip = found.get("slips", {}).get(title)
    return row | {"scores": scores, "published": [printed | ({"note": slip} if slip else {})]}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value + 1e-9:.2f}"  # halves up, as papers round


def _printed(row: Row) -> str:
    """Every kind of mean that is printed for the row, once."""
    first = {entry["of"]: entry["mean"] for entry in reversed(row.get("published", ()))}
    return ", ".join(f"{mean} ({of})" for of, mean in reversed(first.items()))


def _sources(rows: list[Row]) -> str:
    """A numbered list: where the scores of each row and its printed means are from, and its notes."""
    lines = (f"{number}. {row['name']}: {' '.join(_remarks(row))}\n" for number, row in enumerate(rows, 1))
    return "\n" + "".join(lines)


def _remarks(row: Row) -> Iterator[str]:
    yield f"{row['source']}."
    if published := row.get("published"):
        yield f"Printed: {'; '.join(map(_entry, published))}."
    yield from row.get("notes", ())


def _entry(entry: Mapping[str, str]) -> str:
    note = f" ({entry['note']})" if "note" in entry else ""
    return f"{entry['mean']} ({entry['of']}) in {entry['in']}{note}"


if __name__ == "__main__":
    main()
