"""The verdicts of docs/evidence.md, from the results of runs: `make evidence` writes them into the page.

A claim that a method gets more than another holds if the difference is above 0 by Holm's test over all claims, and
does not hold if it is below; one that it gets as much holds if both are equivalent, or it gets more. The difference of
a claim is the mean over its tasks, paired by seed: its tests are of as many values as there are seeds that all tasks
have.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
sys.path.insert(0, str(ROOT))

from capaboost.console import markdown_table  # noqa: E402
from capaboost.plots.style import QUIET, STYLE, label, write_figure  # noqa: E402
from capaboost.tables.statistics import (  # noqa: E402
    MARGIN,
    Difference,
    Verdict,
    judge,
    paired,
    paired_difference,
    spread_of,
)
from capaboost.tables.write import difference_text, number, put  # noqa: E402
from capaboost_core.files import write_atomically  # noqa: E402

PAGE, CLAIMS = ROOT / "docs" / "evidence.md", RESULTS / "evidence" / "claims.yaml"
BESIDE = CLAIMS.with_name("beside.yaml")  # the methods that are held beside d = 2
ERRORS = CLAIMS.with_name("errors.json")  # of tools/measure_runs.py
RUNS = re.compile("<!-- runs (.+):begin -->")  # the sweeps of which the page has a table
LEAST = 2  # tasks of a verdict
COLORS = {"holds": "#1a7f37", "does not hold": "#cf222e", "equivalent within a point": "#0969da"}
OPEN = "#57606a"
Values = dict[int, float]  # by seed


@dataclass(frozen=True)
class Claim:
    """A claim on accuracy, and the runs that judge it.

    Attributes:
        short: The two that are compared, for the picture.
        says: `more`, or `as much`.
        tasks: The values of the method and of what it is held beside, by task; one without runs is left out.
        missing: The tasks without runs.
    """

    claim: str
    short: str
    source: str
    run: str
    says: str
    tasks: dict[str, tuple[Values, Values]]
    missing: tuple[str, ...]

    @property
    def differences(self) -> dict[str, Difference]:
        """Of each task, over the seeds that both methods have."""
        found = {task: paired_difference(*values) for task, values in self.tasks.items()}
        return {task: difference for task, difference in found.items() if difference}

    @property
    def over_tasks(self) -> list[float]:
        """The mean over the tasks of the paired differences, for each seed that all of them have."""
        return over_tasks(self.tasks.values())

    @property
    def tasks_disagree(self) -> bool:
        """Whether one task has a difference above 0 and another below, each by its own interval."""
        ends = [difference.interval for difference in self.differences.values() if difference.interval]
        return any(low > 0 for low, _ in ends) and any(high < 0 for _, high in ends)


def over_tasks(tasks: Iterable[tuple[Values, Values]]) -> list[float]:
    """The mean over tasks of the differences of two methods, for each seed that both have on all tasks."""
    of_task = [{seed: of[seed] - beside[seed] for seed in of.keys() & beside.keys()} for of, beside in tasks]
    shared = set.intersection(*map(set, of_task)) if of_task else set()
    return [fmean(task[seed] for task in of_task) for seed in sorted(shared)]


def values_of(folder: str) -> Values:
    """The value of each finished run below a folder of results/, by seed."""
    return {run["seed"]: float(run["value"]) for run in _runs([RESULTS / folder])}


@cache
def claims() -> tuple[Claim, ...]:
    return tuple(map(_claim, yaml.safe_load(CLAIMS.read_text())))


def _claim(entry: dict[str, Any]) -> Claim:
    read = {task: tuple(map(values_of, folders)) for task, folders in entry.pop("tasks").items()}
    tasks: Any = {task: values for task, values in read.items() if len(paired(*values)) > 1}
    return Claim(**entry, tasks=tasks, missing=tuple(read.keys() - tasks.keys()))


def verdicts() -> dict[str, Verdict]:
    """Of each claim that has runs, with all of them as one family."""
    return judge({claim.claim: claim.over_tasks for claim in claims() if len(claim.over_tasks) > 1})


def word(claim: Claim, verdict: Verdict | None) -> str:
    """What the page says of a claim: holds, does not hold, equivalent or open."""
    if verdict is None:
        return "not run"
    if len(claim.tasks) < LEAST:
        return "open: one task"
    middle = fmean(verdict.interval)
    if verdict.differs and middle > 0:
        return "holds" + (", by less than a point" if verdict.is_equivalent else "")
    if claim.says == "as much" and verdict.is_equivalent:
        return "holds"
    if verdict.differs:
        return "does not hold"
    return "equivalent within a point" if verdict.is_equivalent else f"open: {verdict.needed:,} seeds"


def claims_table() -> str:
    """A line for each claim."""
    found = verdicts()
    titles = ("claim", "what was run", "difference on each task", "over the tasks", "verdict")
    return markdown_table(titles, [_line(claim, found.get(claim.claim)) for claim in claims()])


def _line(claim: Claim, verdict: Verdict | None) -> list[str]:
    of_task = [f"{task}: {difference_text(of, of.pairs)}, {of.pairs} seeds" for task, of in claim.differences.items()]
    mean = ""
    if verdict:
        mean = _over(claim.over_tasks, verdict) + ("; the tasks disagree" if claim.tasks_disagree else "")
    not_run = [f"{task}: not run" for task in sorted(claim.missing)]
    title = f"{claim.claim} ({claim.source})"
    return [title, claim.run, "<br>".join([*of_task, *not_run]), mean, f"**{word(claim, verdict)}**"]


def beside_table() -> str:
    """Each method beside d = 2 of r = 8, the one with the largest difference over the tasks first."""
    listed = yaml.safe_load(BESIDE.read_text())
    reference = {task: values_of(folder) for task, folder in listed["reference"].items()}
    methods = {name: [path.format(task=task) for task in reference] for name, path in listed["methods"].items()}
    differences = {
        name: over_tasks(zip(map(values_of, folders), reference.values(), strict=True))
        for name, folders in methods.items()
    }
    found = judge({name: of for name, of in differences.items() if len(of) > 1})
    names = sorted(found, key=lambda name: fmean(differences[name]), reverse=True)
    rows = [_beside_line(name, methods[name], differences[name], found[name]) for name in names]
    titles = ("method", "trained entries", *reference, "difference over the tasks", "beside d = 2")
    return markdown_table(titles, rows)


def _beside_line(name: str, folders: list[str], differences: list[float], verdict: Verdict) -> list[str]:
    placed = "equivalent within a point" if verdict.is_equivalent else f"open: {verdict.needed:,} seeds"
    if verdict.differs:
        placed = ("above" if fmean(differences) > 0 else "below") + ", within a point" * verdict.is_equivalent
    means = [_mean(values_of(folder)) for folder in folders]
    return [name, _entries(map(RESULTS.joinpath, folders)), *means, _over(differences, verdict), f"**{placed}**"]


def _over(differences: list[float], verdict: Verdict) -> str:
    low, high = (number(end, "+") for end in verdict.interval)
    return f"{number(fmean(differences), '+')} [{low}, {high}], {len(differences)} seeds"


def errors_table() -> str:
    """What runs forget and where they err, a line for each task and method; see tools/measure_runs.py."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in json.loads(ERRORS.read_text())["rows"]:
        rows[row["task"], row["method"], row["beside"]].append(row)
    measured = ("forgetting", "both_wrong", "gain")
    cells = [
        [*key, *(number(fmean(row[name] for row in of)) for name in measured), str(len(of))]
        for key, of in rows.items()
    ]
    titles = ("task", "method", "beside", "forgetting, points", "both wrong, %", "gain of the mean, points", "seeds")
    return markdown_table(titles, cells)


def accounting_table() -> str:
    """The three claims that counting decides, from the reports of `capaboost rank` and `capaboost flops`."""
    theorem, digits = (_report(f"rank/{name}.json") for name in ("theorem", "digits"))
    drawn = theorem["independent"]
    trained = [increment for case in digits["combinations"] for increment in case["increments"]]
    tied = next(row for row in _report("accounting/roberta-base.json")["rows"] if row["method"] == "capaboost-lora")
    rows = [
        [
            "rank d r (Theorem 1, Figure 1)",
            f"{sum(case['equal'] for case in drawn):,} of {sum(case['draws'] for case in drawn):,} drawn sums of two "
            f"products and {sum(of['rank'] == of['bound'] for of in trained)} of {len(trained)} trained delta weights "
            "have it ([ranks](results.md#effective-rank))",
            "**holds**",
        ],
        [
            "three quarters of LoRA's parameters at d = 2 and density 0.5",
            f"{tied['percent_of_lora']:.2f} % on RoBERTa-base ([accounting](../results/accounting/roberta-base.md))",
            "**holds**",
        ],
        [
            "no more multiply-adds than LoRA",
            f"{tied['added_effective_times_lora']:.2f} times LoRA's if masked entries cost nothing; "
            f"{tied['added_executed_times_lora']:.2f} times are executed, a step has "
            f"{tied['step_executed_times_lora']:.2f} times LoRA's",
            "**holds on paper only**",
        ],
    ]
    return markdown_table(("claim", "what was counted", "verdict"), rows)


def _report(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def summary() -> str:
    """How many claims have which verdict."""
    found = verdicts()
    words = [word(claim, found.get(claim.claim)).partition(":")[0].partition(",")[0] for claim in claims()]
    counts = {name: words.count(name) for name in dict.fromkeys(sorted(words))}
    return f"Of {len(words)} comparisons: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + "."


def draw(stem: Path) -> list[Path]:
    """The differences of all claims, the largest first: each task's, and their mean with its interval."""
    found = verdicts()
    shown = sorted(
        (claim for claim in claims() if claim.claim in found), key=lambda claim: fmean(claim.over_tasks), reverse=True
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.44 * len(shown) + 1.1), layout="constrained")
        panel = figure.subplots()
        panel.axvspan(-MARGIN, MARGIN, color="#eaeef2", linewidth=0)
        panel.axvline(0, color=QUIET, linewidth=1)
        for row, claim in enumerate(shown):
            _draw_claim(panel, row, claim, found[claim.claim])
        panel.set_yticks(range(len(shown)), [claim.short for claim in shown])
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.grid(visible=False, axis="y")
        panel.set_xlabel("difference in points: each task (bars), mean, Holm's 95 % interval; grey: within a point")
        return list(write_figure(figure, stem))


def _draw_claim(panel: Axes, row: int, claim: Claim, verdict: Verdict) -> None:
    said = word(claim, verdict)
    color = next((color for name, color in COLORS.items() if said.startswith(name)), OPEN)
    panel.plot(verdict.interval, [row, row], color=color)
    panel.plot([fmean(claim.over_tasks)], [row], "o", color=color, markersize=7)
    panel.plot([of.mean for of in claim.differences.values()], [row + 0.22] * len(claim.differences), "|", color=QUIET)
    label(panel, said.partition(",")[0], max(verdict.interval), row, color, fontsize=8)


def sweep_table(folder: str) -> str:
    """Every method of a sweep on each of its tasks."""
    rows = []
    for task in sorted(path for path in (RESULTS / folder).glob("*") if path.is_dir()):
        methods = {path.name: values_of(str(path.relative_to(RESULTS))) for path in sorted(task.iterdir())}
        rows += _task_rows(task, {name: values for name, values in methods.items() if values})
    return markdown_table(("task", "method", "trained entries", "rate", "mean", "seeds"), rows) if rows else "Not run."


def _task_rows(task: Path, methods: dict[str, Values]) -> list[list[str]]:
    return [
        [task.name, name, *_run_cells(task / name), _mean(values), str(len(values))]
        for name, values in methods.items()
    ]


def _run_cells(folder: Path) -> tuple[str, str]:
    rates = {run["config"]["train"]["lr"] for run in _runs([folder])}
    return _entries([folder]), ", ".join(f"{rate:g}" for rate in sorted(rates))


def _entries(folders: Iterable[Path]) -> str:
    counts = [run["trainable_parameters"] for run in _runs(folders)]
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for folder in folders for path in sorted(folder.glob("seed*/result.json"))]


def _mean(values: Values) -> str:
    of = spread_of(values.values())
    return number(of.mean) + (f" ± {of.std:.2f}" if of.std is not None else "")


def page(text: str) -> str:
    """The page with all that is generated between its markers."""
    tables = {"claims": f"{summary()}\n\n{claims_table()}", "accounting": accounting_table()}
    tables |= {"beside": beside_table(), "errors": errors_table()}
    tables |= {f"runs {folder}": sweep_table(folder) for folder in RUNS.findall(text)}
    for region, table in tables.items():
        text = put(text, table, region, PAGE)
    return text


if __name__ == "__main__":
    made = page(PAGE.read_text())
    write_atomically(PAGE, lambda file: file.write(made.encode()))
    for path in draw(CLAIMS.with_suffix("")):
        print(path.relative_to(ROOT))
    print(summary())
