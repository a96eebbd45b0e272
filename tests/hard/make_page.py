"""Write the generated parts of docs/reliability.md: which test holds which hard case, and the counts.

    python -m tests.hard.make_page

The counts come from results/reliability/hard.json, which `make test-hard` writes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from capaboost.console import markdown_table
from capaboost_core.files import write_atomically
from tests.hard.cases import CASES

ROOT = Path(__file__).parents[2]
PAGE, REPORT = ROOT / "docs" / "reliability.md", ROOT / "results" / "reliability" / "hard.json"


class Collector:
    """A pytest plugin that notes the tests of each hard case."""

    def __init__(self):
        self.tests: dict[int | str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.tests = tests_by_case(session.items)


def tests_by_case(items: list[pytest.Item]) -> dict[int | str, list[str]]:
    """The tests, without their parameters, by the case that they are marked with."""
    tests: dict[int | str, list[str]] = {}
    for item in items:
        for case in {case for marker in item.iter_markers("hard_case") for case in marker.args}:
            name = item.nodeid.partition("[")[0]
            if name not in tests.setdefault(case, []):
                tests[case].append(name)
    return tests


def case_table(tests: dict[int | str, list[str]]) -> str:
    """Every hard case with its tests.

    Raises:
        ValueError: If a case has none, or a test is marked with a case that there is not.
    """
    if tests.keys() != CASES.keys():
        raise ValueError(f"cases without a test or unknown: {sorted(map(str, tests.keys() ^ CASES.keys()))}")
    rows = [(case, CASES[case], "<br>".join(f"`{short(name)}`" for name in tests[case])) for case in CASES]
    return markdown_table(("", "hard case", "tests"), rows)


def short(name: str) -> str:
    """A test as the page names it: below tests/."""
    return name.removeprefix("tests/")


def count_table(report: dict) -> str:
    """What each test tried, by outcome, and in which run."""
    outcomes = ("accepted", "refused")
    rows = []
    for test, counts in report["counts"].items():
        other = ", ".join(f"{number} {name}" for name, number in counts.items() if name not in outcomes)
        rows.append((f"`{short(test)}`", *(f"{counts.get(name, 0):,}" for name in outcomes), other))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = (
        f"`make test-hard`: {report['cases']:,} cases in {report['tests']} tests, {report['failed']} of them failed; "
        f"{report['seconds'] / 60:.0f} minutes on {report['processors']} processors; {versions}.\n\n"
    )
    return head + markdown_table(("test", *outcomes, "other outcomes"), rows)


def fill(text: str, regions: dict[str, str]) -> str:
    """The page with each region between its two lines."""
    for name, content in regions.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, after = text[: text.index(begin)], text[text.index(end) :]
        text = f"{before}{begin}\n\n{content}\n{after}"
    return text


def main() -> None:
    os.chdir(ROOT)
    collector = Collector()
    if pytest.main(["--collect-only", "-qq", "--no-header", "tests"], plugins=[collector]):
        sys.exit("error: the tests cannot be collected; mend what pytest says")
    regions = {
        "cases": case_table(collector.tests),
        "counts": count_table(json.loads(REPORT.read_text(encoding="utf-8"))),
    }
    text = fill(PAGE.read_text(encoding="utf-8"), regions)
    write_atomically(PAGE, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
