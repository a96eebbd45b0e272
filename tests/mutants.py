"""Whether the suite bites: small faults are put into the source one by one, and the tests that reach them run.

    python -m tests.mutants --number 60 --seed 0                     # what `make mutants` does
    python -m tests.mutants --number 12 --tests tests/core/test_config.py tests/sweeps/test_plan.py

A first run of the tests, with a probe at each place that was drawn, notes which test reaches which place. A place that
none reaches is left out, since only `make test-all` gets there, and so is a test that fails without a fault. Then each
fault runs its tests until the first failure. All happens in a copy of the checkout. A survivor keeps the `why` that
somebody wrote beside it in the results: why it is equivalent, or which test was added.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("capaboost_core", "capaboost/sweeps", "capaboost/tables")
RESULTS = ROOT / "results" / "mutants.json"
TURNED = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
SPARE = 2  # places drawn for each that is wanted, as some are reached by no test
MOST_TESTS, MOST_SECONDS = 60, 180


@dataclass
class Mutant:
    """One fault: the source of a statement, or of a part of it, before and after."""

    path: str
    line: int
    before: str
    after: str
    statement: int  # the line where the probe goes
    span: tuple[int, int, int, int]
    outcome: str = ""
    test: str = ""
    why: str = ""
    tests: list[str] = field(default_factory=list)


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every fault of a file; docstrings, annotations, messages and class bodies of settings stay as they are."""
    text = (ROOT / path).read_text()
    tree, lines = ast.parse(text), text.splitlines()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for statement in _statements(function.body):
            if lines[statement.lineno - 1].lstrip().startswith("elif"):  # no probe can stand before it
                continue
            for node, changed in _faults(statement):
                span = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
                yield Mutant(str(path), node.lineno, ast.unparse(node), changed, statement.lineno, span)


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


def drawn(number: int, seed: int) -> list[Mutant]:
    """Faults of different statements, in an order that the seed decides."""
    files = sorted(file.relative_to(ROOT) for source in SOURCES for file in (ROOT / source).rglob("*.py"))
    every = [mutant for path in files for mutant in mutants_of(path)]
    random.Random(seed).shuffle(every)
    first = {(mutant.path, mutant.statement): mutant for mutant in reversed(every)}
    return [m for m in every if first[m.path, m.statement] is m][:number]


def write(place: Path, mutants: list[Mutant], probes: bool) -> None:
    """Put probes before the statements, or the faults into them; from the end of a file, so that lines stay."""
    for path in {mutant.path for mutant in mutants}:
        lines = (ROOT / path).read_text().splitlines(keepends=True)
        for i, mutant in sorted(enumerate(mutants), key=lambda pair: pair[1].statement, reverse=True):
            if mutant.path != path:
                continue
            if probes:
                text = lines[mutant.statement - 1]
                indent = text[: len(text) - len(text.lstrip())]
                lines.insert(mutant.statement - 1, f'{indent}getattr(__import__("builtins"), "_reached", int)({i})\n')
                continue
            first, start, last, end = mutant.span
            tail = lines[last - 1].encode()[end:].decode()
            head = lines[first - 1].encode()[:start].decode()
            lines[first - 1 : last] = [f"{head}{mutant.after}{tail}"]
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
    here = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | more
    try:
        made = subprocess.run(command, cwd=place, env=here, timeout=timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return -1, ""
    return made.returncode, made.stdout + made.stderr


def reach(place: Path, mutants: list[Mutant], tests: list[str]) -> None:
    """Fill in which tests reach each fault."""
    write(place, mutants, probes=True)
    log = place / "reached.txt"
    code, out = pytest(place, "-p", "tests.mutants", "-n", "2", *tests, MUTANTS_LOG=str(log))
    if code not in (0, 1):  # 1: some tests failed
        sys.exit(f"the tests do not run (exit code {code} of pytest): {out[-1000:]}")
    failed = {name for name, _ in _failures(out)}
    for line in sorted(set(log.read_text().splitlines())) if log.exists() else ():
        number, _, test = line.partition(" ")
        if test not in failed:
            mutants[int(number)].tests.append(test)
    for path in {mutant.path for mutant in mutants}:
        shutil.copy2(ROOT / path, place / path)


def pytest_configure() -> None:
    """As a plugin of the first run: what a probe calls, in this process and in its forks."""
    import builtins

    seen: set[tuple[int, str]] = set()

    def reached(number: int) -> None:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        if test and (number, test) not in seen:
            seen.add((number, test))
            with open(os.environ["MUTANTS_LOG"], "a") as log:
                log.write(f"{number} {test}\n")

    builtins._reached = reached


def _failures(out: str) -> list[tuple[str, str]]:
    """Names of the tests that failed, with pytest's reasons."""
    lines = [line for line in out.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return [(name, reason) for name, _, reason in (line.partition(" ")[2].partition(" - ") for line in lines)]


def judge(place: Path, mutant: Mutant) -> None:
    """Run the tests that reach the fault until one fails; one that does not end in time is counted apart."""
    write(place, [mutant], probes=False)
    code, out = pytest(place, "-x", *mutant.tests[:MOST_TESTS], timeout=MOST_SECONDS)
    shutil.copy2(ROOT / mutant.path, place / mutant.path)
    mutant.outcome = {0: "survived", 1: "found", 2: "found", -1: "timeout"}.get(code, f"not run: exit code {code}")
    mutant.test = next((name for name, _ in _failures(out)), "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="*", default=[], help="default: those of `make test`")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = json.loads(options.output.read_text())["mutants"] if options.output.exists() else []
    why = {(old["path"], old["before"], old["after"]): old["why"] for old in known}
    with tempfile.TemporaryDirectory() as folder:
        place, mutants = copied(Path(folder)), drawn(SPARE * options.number, options.seed)
        reach(place, mutants, options.tests)
        reached = [mutant for mutant in mutants if mutant.tests][: options.number]
        for mutant in reached:
            judge(place, mutant)
            mutant.why = why.get((mutant.path, mutant.before, mutant.after), "")
            print(f"{mutant.outcome}: {mutant.path}:{mutant.line} {mutant.before} -> {mutant.after}", flush=True)
    found = sum(mutant.outcome == "found" for mutant in reached)
    command = " ".join(["python -m tests.mutants", *sys.argv[1:]])
    left_out = ("tests", "span", "statement")
    kept = [{key: value for key, value in asdict(m).items() if key not in left_out} for m in reached]
    record = {"command": command, "seed": options.seed, "found": found, "of": len(reached), "mutants": kept}
    options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{found} of {len(reached)} found; {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
