"""Tables come from result files that hold what they need; others are refused in one line, and nothing is written."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from capaboost.commands import tables as command
from capaboost_core import UserError
from tests.hard.oracle import attempt, refused, scratch
from tests.hard.values import damaged, mutated
from tests.toy_result import RESULT


def run(folder: Path, output: str, *flags: str) -> str:
    """The text of an output file.

    Raises:
        UserError: With what the command says when it refuses.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = command.main([str(folder), *flags])
    if code:
        raise UserError(err.getvalue().rstrip("\n"))
    return (folder / output).read_text()


def tables(folder: Path) -> None:
    """Make both tables of the folder's results, or be refused."""
    made = attempt(lambda: run(folder, "t.csv", "--markdown", f"{folder}/t.md", "--csv", f"{folder}/t.csv"), folder)
    if not refused(made):
        rows = list(csv.DictReader(io.StringIO(made)))
        lines = (folder / "t.md").read_text().splitlines()
        assert len(lines) == 2 + len(rows) > 2
        assert len({line.count("|") for line in lines}) == 1, "a cell breaks the table"
        assert all(float(row["mean"]) == float(row["mean"]) for row in rows)


def compared(folder: Path) -> None:
    """Compare with the toy's method, or be refused; every line of the table has a cell for each column."""
    flags = ("--compare", RESULT["method"], "--latex", f"{folder}/t.tex")
    made = attempt(lambda: run(folder, "t.tex", *flags), folder)
    if not refused(made):
        lines = [line for line in made.split("\n") if line.endswith("\\\\")]
        assert len({line.count(" & ") for line in lines}) == 1, "a cell breaks the table"


def put(folder: Path, name: str, content: bytes) -> None:
    (folder / name).mkdir()
    (folder / name / "result.json").write_bytes(content)


@given(results=st.lists(mutated(RESULT, most=3), min_size=1, max_size=3))
def test_results_with_anything_anywhere(results):
    with scratch() as folder:
        for i, result in enumerate(results):
            put(folder, str(i), json.dumps(result).encode())
        tables(folder)


@given(results=st.lists(mutated(RESULT | {"lr_grid": {"0.001": 1.0}}, most=3), min_size=1, max_size=3))
def test_a_comparison_of_anything_with_a_good_result(results):
    with scratch() as folder:
        put(folder, "good", json.dumps(RESULT | {"seed": 9}).encode())
        for i, result in enumerate(results):
            put(folder, str(i), json.dumps(result).encode())
        compared(folder)


@given(content=damaged(json.dumps(RESULT).encode()))
def test_a_damaged_result(content):
    with scratch() as folder:
        put(folder, "good", json.dumps(RESULT | {"seed": 9}).encode())
        put(folder, "bad", content)
        tables(folder)
