"""Whether the suite bites: small faults are put into the source one by one, and the tests that reach them run.

    python -m tests.mutants --number 60 --seed 0                     # what `make mutants` does
    python -m tests.mutants --number 12 --tests tests/core/test_config.py tests/sweeps/test_plan.py
    python -m tests.mutants --again --tests tests/core/test_masks.py # the faults that were not found, by these tests

A first run of the tests, with a probe at each place that was drawn, notes which test reaches which place, in its own
process or in one that it starts. A place that none reaches is left out, since only `make test-all` gets there. Then
each fault runs its tests, those first that reach few other places, until one fails. It is found if that test passes
without the fault, or if the fault lets test files no longer be imported; a fault whose tests do not end, or do not
run, is not found. All happens in copies of the checkout, so it may be edited meanwhile. A fault keeps the `why` that
somebody wrote beside it in the results, as why it changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCES = ("capaboost_core", "capaboost/training", "capaboost/report", "capaboost/sweeps", "capaboost/tables")
RESULTS = ROOT / "results" / "mutants.json"
TURNED = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
SPARE = 2  # places drawn for each that is wanted, as some are reached by no test
CLOSEST, MOST_TESTS, MOST_SECONDS = 12, 200, 600  # for each fault
AT_IMPORT = "found: the tests cannot be imported"
# Python runs it as it starts, wherever the folder is on the path: what a probe calls, in processes of the tests too.
PROBE = """
import builtins, os
seen = set()
def reached(number):
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    if test and (number, test) not in seen:
        seen.add((number, test))
        with open(os.environ["MUTANTS_LOG"], "a") as log:
            log.write(f"{number} {test}\\n")
if "MUTANTS_LOG" in os.environ:
    builtins._reached = reached
"""


@dataclass
class Mutant:
    """One fault: the source of a statement, or of a part of it, before and after, and its line with the fault."""

    path: str
    line: int
    before: str
    after: str
    code: str
    statement: int  # the line where the probe goes
    span: tuple[int, int, int, int]
    outcome: str = ""
    test: str = ""
    why: str = ""
    tests: list[str] = field(default_factory=list)

    @property
    def row(self) -> dict[str, Any]:
        """Its row of the results."""
        return {key: value for key, value in asdict(self).items() if key not in ("tests", "span", "statement")}


def mutants_of(clean: Path, path: Path) -> Iterator[Mutant]:
    """Every fault of a file; docstrings, annotations, messages and class bodies of settings stay as they are."""
    text = (clean / path).read_text()
    tree, lines = ast.parse(text), text.splitlines()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for statement in _statements(function.body):
            if lines[statement.lineno - 1].lstrip().startswith("elif"):  # no probe can stand before it
                continue
            for node, changed in _faults(statement):
                span = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
                code = _replaced(lines, span, changed).strip()
                yield Mutant(str(path), node.lineno, ast.unparse(node), changed, code, statement.lineno, span)


def _replaced(lines: list[str], span: tuple[int, int, int, int], text: str) -> str:
    """The lines of a span, as one, with a text in its place; columns are bytes."""
    first, start, last, end = span
    return lines[first - 1].encode()[:start].decode() + text + lines[last - 1].encode()[end:].decode()


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Raise, ast.Import, ast.ImportFrom)):
            continue
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not is_text:
            yield statement
        for name in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(statement, name, []))


def _faults(statement: ast.stmt) -> Iterator[tuple[ast.AST, str]]:
    """The parts of a statement with what stands in their place; of a block only its head."""
    value = getattr(statement, "value", None)
    if isinstance(statement, (ast.AugAssign, ast.Expr)) and not isinstance(value, (ast.Yield, ast.YieldFrom)):
        yield statement, "pass"
    for node in _parts(statement):
        changed = _changed(node)
        if changed is not None:
            yield node, f"({ast.unparse(changed)})"


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions below a node, but for annotations and f-strings, whose places Python 3.11 mistakes."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            skipped = (ast.stmt, ast.JoinedStr, ast.ExceptHandler, ast.match_case)
            if isinstance(child, ast.AST) and name != "annotation" and not isinstance(child, skipped):
                if hasattr(child, "lineno"):
                    yield child
                yield from _parts(child)


def _changed(node: ast.AST) -> ast.AST | None:
    made = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
        made.ops[0] = TURNED[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        made.op = TURNED[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        made = node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        made = ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Call) and len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args):
        made.args[0], made.args[1] = made.args[1], made.args[0]
    else:
        return None
    return made


def every_fault(clean: Path) -> list[Mutant]:
    files = sorted(file.relative_to(clean) for source in SOURCES for file in (clean / source).rglob("*.py"))
    return [mutant for path in files for mutant in mutants_of(clean, path)]


def drawn(every: list[Mutant], number: int, seed: int) -> list[Mutant]:
    """Faults of different statements, in an order that the seed decides."""
    random.Random(seed).shuffle(every)
    first = {(mutant.path, mutant.statement): mutant for mutant in reversed(every)}
    return [m for m in every if first[m.path, m.statement] is m][:number]


def not_found(every: list[Mutant], rows: list[dict[str, Any]]) -> dict[int, Mutant]:
    """The faults that an earlier run did not find, in the source as it is now, by the number of their row."""
    made = {}
    for number, row in enumerate(rows):
        same = [m for m in every if (m.path, m.code) == (row["path"], row["code"])]
        if same and not row["outcome"].startswith("found"):
            made[number] = min(same, key=lambda mutant: abs(mutant.line - row["line"]))
    return made


def write(clean: Path, place: Path, mutants: list[Mutant], probes: bool) -> None:
    """Put probes before the statements, or the faults into them; from the end of a file, so that lines stay."""
    for path in {mutant.path for mutant in mutants}:
        lines = (clean / path).read_text().splitlines(keepends=True)
        for i, mutant in sorted(enumerate(mutants), key=lambda pair: pair[1].statement, reverse=True):
            if mutant.path != path:
                continue
            if probes:
                text = lines[mutant.statement - 1]
                indent = text[: len(text) - len(text.lstrip())]
                lines.insert(mutant.statement - 1, f'{indent}getattr(__import__("builtins"), "_reached", int)({i})\n')
                continue
            lines[mutant.span[0] - 1 : mutant.span[2]] = [_replaced(lines, mutant.span, mutant.after)]
        (place / path).write_text("".join(lines))


def copied(folder: Path) -> Path:
    """The files of the checkout that git knows, and beside them what tests look for."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def pytest(place: Path, *arguments: str, timeout: float | None = None, **more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *arguments]
    here = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": str(place)}
    with tempfile.TemporaryFile("w+", errors="replace") as out:
        streams = {"stdout": out, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, cwd=place, env=os.environ | here | more, **streams)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = -1
            os.killpg(process.pid, signal.SIGKILL)  # its own processes too
            process.wait()
        out.seek(0)
        return code, out.read()


def reach(clean: Path, place: Path, mutants: list[Mutant], tests: list[str]) -> None:
    """Fill in which tests reach each fault, those first that reach the fewest."""
    write(clean, place, mutants, probes=True)
    log, probe = place.parent / "reached.txt", place / "sitecustomize.py"
    probe.write_text(PROBE)
    code, out = pytest(place, "-n", "2", "--dist", "worksteal", *tests, MUTANTS_LOG=str(log))
    if code not in (0, 1):  # 1: some tests failed, as those that compile, which cannot pass a probe
        sys.exit(f"the tests do not run (exit code {code} of pytest): {out[-1000:]}")
    for line in sorted(set(log.read_text().splitlines())) if log.exists() else ():
        number, _, test = line.partition(" ")
        mutants[int(number)].tests.append(test)
    reached = Counter(test for mutant in mutants for test in mutant.tests)
    for mutant in mutants:
        mutant.tests.sort(key=lambda test: reached[test])
    probe.unlink()
    restore(clean, place, mutants)


def restore(clean: Path, place: Path, mutants: list[Mutant]) -> None:
    for path in {mutant.path for mutant in mutants}:
        shutil.copy2(clean / path, place / path)


def pytest_collection_modifyitems(items: list) -> None:
    """As a plugin: of the files that are named only the tests that are listed, file by file."""
    if "MUTANTS_TESTS" in os.environ:
        listed = set(Path(os.environ["MUTANTS_TESTS"]).read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in listed]


def run_listed(place: Path, tests: list[str], *arguments: str) -> tuple[int, str]:
    listed = place.parent / "tests.txt"
    listed.write_text("\n".join(tests))
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    options = ["-x", "-p", "tests.mutants", *arguments]
    return pytest(place, *options, *files, timeout=MOST_SECONDS, MUTANTS_TESTS=str(listed))


def _failures(out: str) -> list[tuple[str, str]]:
    """Names of the tests that failed, with pytest's reasons."""
    lines = [line for line in out.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return [(name, reason) for name, _, reason in (line.partition(" ")[2].partition(" - ") for line in lines)]


def judge(clean: Path, place: Path, mutant: Mutant) -> None:
    """Run the tests that reach the fault, a few of the closest first, until it is found."""
    write(clean, place, [mutant], probes=False)
    for tests in filter(None, (mutant.tests[:CLOSEST], mutant.tests[CLOSEST:MOST_TESTS])):
        if not mutant.outcome.startswith("found"):
            mutant.outcome, mutant.test = outcome_of(clean, place, tests)
    restore(clean, place, [mutant])


def outcome_of(clean: Path, place: Path, tests: list[str]) -> tuple[str, str]:
    """What the tests say of the fault that is in place, with the first that fails and passes without it."""
    while tests:
        code, out = run_listed(place, tests)
        failed = next((name for name, _ in _failures(out)), "")
        if code in (0, -1):
            return "survived" if code == 0 else "timeout", ""
        if code == 2 and [run_listed(which, tests, "--collect-only")[0] for which in (place, clean)] == [2, 0]:
            return AT_IMPORT, failed
        if code != 1 or failed not in tests:
            return f"not run: exit code {code}", failed
        if run_listed(clean, [failed])[0] == 0:
            return "found", failed
        tests = [test for test in tests if test != failed]
    return "not run", ""


def started(number: int, seed: int) -> dict[str, Any]:
    """A record without faults, of the commit that the checkout is at."""
    at = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    command = f"python -m tests.mutants --number {number} --seed {seed}"
    return {"command": command, "commit": at.strip(), "found": 0, "of": 0, "mutants": []}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="*", default=[], help="default: those of `make test`")
    parser.add_argument("--again", action="store_true", help="judge those that the output says were not found")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = json.loads(options.output.read_text()) if options.output.exists() else {"mutants": []}
    why = {(row["path"], row["code"]): row["why"] for row in known["mutants"]}
    record = known if options.again else started(options.number, options.seed)
    rows = record["mutants"]
    with tempfile.TemporaryDirectory() as folder:
        clean, place = Path(folder, "clean"), Path(folder, "place")
        shutil.copytree(copied(clean), place)
        every = every_fault(clean)
        again = not_found(every, rows) if options.again else {}
        mutants = [*again.values()] if options.again else drawn(every, SPARE * options.number, options.seed)
        reach(clean, place, mutants, options.tests)
        for mutant in [mutant for mutant in mutants if mutant.tests][: options.number]:
            judge(clean, place, mutant)
            mutant.why = why.get((mutant.path, mutant.code), "")
            print(f"{mutant.outcome}: {mutant.path}:{mutant.line} {mutant.code}", flush=True)
            number = next((number for number, fault in again.items() if fault is mutant), len(rows))
            rows[number : number + 1] = [mutant.row]
            record |= {"found": sum(row["outcome"].startswith("found") for row in rows), "of": len(rows)}
            options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{record['found']} of {record['of']} found; {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
