"""How many cases each test tried, by outcome; the source of the counts in docs/reliability.md."""

import json
import os
import time
from collections import Counter, defaultdict
from pathlib import Path

from capaboost.training.result import git_state, library_versions
from capaboost_core.files import write_atomically

COUNTS: dict[str, Counter] = defaultdict(Counter)
BEGUN = time.monotonic()


def count(outcome: str) -> str:
    """Count a case of the running test; returns the outcome."""
    node = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0]
    COUNTS[node.partition("[")[0]][outcome] += 1
    return outcome


def write(path: Path, profile: str, tests: int, failed: int) -> None:
    """Write all counts with what is needed to repeat them."""
    report = {
        "profile": profile,
        "tests": tests,
        "failed": failed,
        "cases": sum(sum(outcomes.values()) for outcomes in COUNTS.values()),
        "seconds": round(time.monotonic() - BEGUN),
        "processors": len(os.sched_getaffinity(0)),
        "counts": {test: dict(sorted(COUNTS[test].items())) for test in sorted(COUNTS)},
        "versions": library_versions(),
        "git": git_state(),
    }
    text = json.dumps(report, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
