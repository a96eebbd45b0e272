"""docs/reliability.md promises nothing that no test holds; its tables are those of the tests and of their counts."""

from __future__ import annotations

import ast
import json
import re

import pytest

from tests.hard import make_page
from tests.hard.cases import CASES

TEST = re.compile(r"`((?:\w+/)*test_\w+\.py)::(\w+)`")
PAGE = make_page.PAGE.read_text(encoding="utf-8")
LEAST = 2000  # generated cases


def functions(path: str) -> set[str]:
    tree = ast.parse((make_page.ROOT / "tests" / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", sorted({path for path, _ in TEST.findall(PAGE)}))
def test_every_test_that_the_page_names_is_there(path):
    assert {name for found, name in TEST.findall(PAGE) if found == path} <= functions(path)


def test_every_promise_names_a_test():
    promises = PAGE.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        assert TEST.search(row), row


def test_every_hard_case_has_a_test():
    cases = PAGE.partition("<!-- cases:begin -->")[2].partition("<!-- cases:end -->")[0]
    for case, text in CASES.items():
        row = next(line for line in cases.splitlines() if line.startswith(f"| {case} |"))
        assert text in row
        assert TEST.search(row), row


def test_the_page_names_every_marked_test_that_runs(request):
    for case, names in make_page.tests_by_case(request.session.items).items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {case} |"))
        for name in names:
            assert f"`{make_page.short(name)}`" in row, f"run python -m tests.hard.make_page: {case} lacks {name}"


def test_the_counts_are_those_of_the_last_long_run():
    report = json.loads(make_page.REPORT.read_text(encoding="utf-8"))
    assert report["profile"] == "hard"
    assert report["failed"] == 0
    assert report["cases"] == sum(sum(counts.values()) for counts in report["counts"].values()) >= LEAST
    assert make_page.count_table(report) in PAGE
