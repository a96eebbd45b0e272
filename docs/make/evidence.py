"""The verdicts of docs/evidence.md and the defaults beside a probe of docs/methods.md, from the results of runs:
`make evidence` writes them into the pages.

A claim that a method gets more than another holds if the difference is above 0, and does not hold if it is below; one
that it gets as much holds if both are equivalent, or it gets more. Both tests are Holm's over all claims. The
difference of a claim is the mean over its tasks, paired by seed: its tests are of as many values as there are seeds
that all tasks have.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
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
    LEVEL,
    MARGIN,
    Difference,
    Verdict,
    holm,
    judge,
    paired_difference,
    pairs_needed,
    spread_of,
)
from capaboost.tables.write import difference_text, number, put  # noqa: E402
from capaboost_core.files import write_atomically  # noqa: E402

PAGE, CLAIMS = ROOT / "docs" / "evidence.md", RESULTS / "evidence" / "claims.yaml"
BESIDE = CLAIMS.with_name("beside.yaml")  # methods, and what they are held beside
ERRORS = CLAIMS.with_name("errors.json")  # of tools/measure_runs.py
RUNS = re.compile("<!-- runs (.+):begin -->")  # the sweeps of which the page has a table
METHODS_PAGE = ROOT / "docs" / "methods.md"
DEFAULT_TASKS = {  # as the page calls them
    "digits": "digits (one rate)",
    "cifar": "CIFAR-100",
    "oxford_flowers102": "Flowers102",
    "sst2-2000": "SST-2, 2,000 rows, MiniLM",
    "cola-8551": "CoLA, MiniLM (Matthews)",
}
EQUIVALENT = "equivalent within a point"
LEAST_TASKS = 2  # of a verdict
ROUNDED = 1.005  # times LoRA's, which reads 1.00
COLORS = {"holds": "#1a7f37", "does not hold": "#cf222e", EQUIVALENT: "#0969da"}
OPEN = "#57606a"
Values = dict[int, float]  # by seed


@dataclass(frozen=True)
class Claim:
    """A claim on accuracy, and the runs that judge it.

    Attributes:
        short: The two that are compared, for the picture.
        says: `more`, or `as much`.
        tasks: The values of the method and of what it is held beside, by task.
    """

    claim: str
    short: str
    source: str
    run: str
    says: str
    tasks: dict[str, tuple[Values, Values]]

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
    return {run["seed"]: float(run["value"]) for run in _runs(folder)}


def _runs(folder: str) -> list[dict[str, Any]]:
    """The records of a method's runs; a folder without any is an error."""
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("seed*/result.json"))]
    if not runs:
        raise FileNotFoundError(f"results/{folder} holds no run")
    return runs


@cache
def claims() -> tuple[Claim, ...]:
    return tuple(map(_claim, yaml.safe_load(CLAIMS.read_text())))


def _claim(entry: dict[str, Any]) -> Claim:
    tasks: Any = {task: tuple(map(values_of, folders)) for task, folders in entry.pop("tasks").items()}
    return Claim(**entry, tasks=tasks)


def judged(family: dict[str, list[float]]) -> dict[str, Verdict]:
    """The verdicts, with equivalence corrected by Holm for the family as differences are."""
    found = judge(family)
    equivalence = holm({name: verdict.p_equivalent for name, verdict in found.items()})
    return {name: replace(verdict, p_equivalent=equivalence[name]) for name, verdict in found.items()}


def verdicts() -> dict[str, Verdict]:
    """Of each claim, with all of them as one family."""
    return judged({claim.claim: claim.over_tasks for claim in claims()})


def finding(differences: list[float], verdict: Verdict, family: int) -> str:
    """Whether a method is above or below another, equivalent, or open: with how many seeds of those that it needs.

    The seeds needed are those that find a difference of a point with 80 % power at 5 % over so many lines.
    """
    small = ", by less than a point" if verdict.is_equivalent else ""
    if verdict.differs:
        return ("above" if fmean(differences) > 0 else "below") + small
    needed = pairs_needed(stdev(differences), level=LEVEL / family)
    return EQUIVALENT if verdict.is_equivalent else f"open: {len(differences)} of {needed:,} seeds"


def word(claim: Claim, verdict: Verdict, family: int) -> str:
    """What the page says of a claim: holds, does not hold, equivalent or open."""
    if len(claim.tasks) < LEAST_TASKS:
        return "open: one task"
    found = finding(claim.over_tasks, verdict, family)
    if found.startswith("above"):
        return found.replace("above", "holds")
    if claim.says == "as much" and verdict.is_equivalent:
        return "holds"
    return "does not hold" if found.startswith("below") else found


def claims_table() -> str:
    """A line for each claim."""
    found = verdicts()
    titles = ("claim", "what was run", "difference on each task", "over the tasks", "verdict")
    return markdown_table(titles, [_line(of, found[of.claim], len(found)) for of in claims()])


def _line(claim: Claim, verdict: Verdict, family: int) -> list[str]:
    of_task = [f"{task}: {difference_text(of, of.pairs)}, {of.pairs} seeds" for task, of in claim.differences.items()]
    mean = _over(claim.over_tasks, verdict) + ("; the tasks disagree" if claim.tasks_disagree else "")
    said = f"**{word(claim, verdict, family)}**"
    said += f" (p {verdict.p_equivalent:.2g})" if verdict.is_equivalent else ""
    return [f"{claim.claim} ({claim.source})", claim.run, "<br>".join(of_task), mean, said]


def _over(differences: list[float], verdict: Verdict) -> str:
    low, high = (number(end, "+") for end in verdict.interval)
    return f"{number(fmean(differences), '+')} [{low}, {high}], {len(differences)} seeds"


def beside_table(beside: str, tasks: dict[str, str], methods: dict[str, dict[str, str]]) -> str:
    """A method, and others beside it, the one with the largest difference over the tasks first."""
    reference = {task: values_of(folder) for task, folder in tasks.items()}
    values = {name: {task: values_of(folders[task]) for task in tasks} for name, folders in methods.items()}
    differences = {name: over_tasks((of[task], reference[task]) for task in tasks) for name, of in values.items()}
    found = judged(differences)
    rows = [[beside, _entries(tasks.values()), *map(_mean, reference.values()), "", ""]]
    for name in sorted(found, key=lambda name: fmean(differences[name]), reverse=True):
        enough = len(tasks) >= LEAST_TASKS
        placed = finding(differences[name], found[name], len(found)) if enough else "open: one task"
        compared = [_over(differences[name], found[name]), f"**{placed}**"]
        rows.append([name, _entries(methods[name].values()), *map(_mean, values[name].values()), *compared])
    titles = ("method", "trained entries", *tasks, "difference over the tasks", f"beside {beside}")
    return markdown_table(titles, rows)


def errors_table() -> str:
    """What runs forget and where they err, a line for each task and method; see tools/measure_runs.py."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in json.loads(ERRORS.read_text())["rows"]:
        rows[row["task"], row["method"], row["beside"]].append(row)
    measured = ("forgetting", "both_wrong", "gain")
    cells = [[*key, *(_mean_of(of, name) for name in measured), str(len(of))] for key, of in sorted(rows.items())]
    titles = ("task", "method", "beside", "forgetting, points", "both wrong, %", "gain of the mean, points", "seeds")
    return markdown_table(titles, cells)


def _mean_of(rows: list[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    return number(fmean(values)) if values else ""


def defaults_table() -> str:
    """The shipped defaults beside a probe, at each length of training."""
    rows = []
    for task, name in DEFAULT_TASKS.items():
        probe, tied = (f"defaults/{task}/{method}" for method in ("linear", "capaboost-lora"))
        for epochs in sorted(int(path.name.removeprefix("epochs=")) for path in (RESULTS / probe).iterdir()):
            cells = [_mean(values_of(f"{of}/epochs={epochs}")) for of in (probe, tied)]
            rows.append([name, str(epochs), *cells])
    return markdown_table(("task", "epochs", "probe", "CapaBoost-LoRA"), rows)


def accounting_table() -> str:
    """The three claims that counting decides, from the reports of `capaboost rank` and `capaboost flops`."""
    rows = [_ranks(), *_counts(_report("accounting/roberta-base.json")["rows"])]
    return markdown_table(("claim", "what was counted", "verdict"), rows)


def _ranks() -> list[str]:
    theorem, digits = (_report(f"rank/{name}.json") for name in ("theorem", "digits"))
    drawn = theorem["independent"]
    trained = [increment for case in digits["combinations"] for increment in case["increments"]]
    equal, draws = (sum(case[name] for case in drawn) for name in ("equal", "draws"))
    full = sum(of["rank"] == of["bound"] for of in trained)
    counted = (
        f"{equal:,} of {draws:,} drawn sums of two products and {full} of {len(trained)} trained delta weights have "
        "it ([ranks](results.md#effective-rank))"
    )
    holds = equal == draws and full == len(trained)
    return ["rank d r (Theorem 1, Figure 1)", counted, f"**{'holds' if holds else 'does not hold'}**"]


def _counts(rows: list[dict[str, Any]]) -> list[list[str]]:
    tied = next(row for row in rows if row["method"] == "capaboost-lora")
    share, kept, done = (
        tied[name] for name in ("percent_of_lora", "added_effective_times_lora", "added_executed_times_lora")
    )
    quarters = "holds" if round(share) == 75 else "does not hold"
    counted = "holds on paper only" if kept <= ROUNDED < done else "holds" if kept <= ROUNDED else "does not hold"
    return [
        ["three quarters of LoRA's parameters at d = 2 and density 0.5",
         f"{share:.2f} % on RoBERTa-base ([accounting](../results/accounting/roberta-base.md))", f"**{quarters}**"],
        ["no more multiply-adds than LoRA",
         f"{kept:.2f} times LoRA's if masked entries cost nothing; {done:.2f} times are executed, a step has "
         f"{tied['step_executed_times_lora']:.2f} times LoRA's", f"**{counted}**"],
    ]  # fmt: skip


def _report(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def counts() -> Counter[str]:
    """How many claims have which verdict."""
    found = verdicts()
    return Counter(re.split("[:,]", word(claim, found[claim.claim], len(found)))[0] for claim in claims())


def summary() -> str:
    of = counts()
    return (
        f"Of {of.total()} comparisons the claim holds in {of['holds']} and does not hold in {of['does not hold']}; "
        f"{of[EQUIVALENT]} are equivalent within a point and {of['open']} are open."
    )


def draw(stem: Path) -> list[Path]:
    """The differences of all claims, the largest first: each task's, and their mean with its interval."""
    found = verdicts()
    shown = sorted(claims(), key=lambda claim: fmean(claim.over_tasks), reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.44 * len(shown) + 1.1), layout="constrained")
        panel = figure.subplots()
        panel.axvspan(-MARGIN, MARGIN, color="#eaeef2", linewidth=0)
        panel.axvline(0, color=QUIET, linewidth=1)
        for row, claim in enumerate(shown):
            _draw_claim(panel, row, claim, found[claim.claim], len(found))
        panel.set_yticks(range(len(shown)), [claim.short for claim in shown])
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.grid(visible=False, axis="y")
        panel.set_xlabel("difference in points: tasks (ticks), mean, interval by Holm; shaded: within a point")
        return list(write_figure(figure, stem))


def _draw_claim(panel: Axes, row: int, claim: Claim, verdict: Verdict, family: int) -> None:
    said = word(claim, verdict, family)
    color = next((color for name, color in COLORS.items() if said.startswith(name)), OPEN)
    panel.plot(verdict.interval, [row, row], color=color)
    panel.plot([fmean(claim.over_tasks)], [row], "o", color=color, markersize=7)
    panel.plot([of.mean for of in claim.differences.values()], [row + 0.22] * len(claim.differences), "|", color=QUIET)
    label(panel, said.partition(",")[0], max(verdict.interval), row, color, fontsize=8)


def sweep_table(sweep: str) -> str:
    """Every method of a sweep on each of its tasks."""
    folders = sorted(
        {path.parents[1].relative_to(RESULTS) for path in (RESULTS / sweep).glob("*/*/seed*/result.json")}
    )
    titles = ("task", "method", "trained entries", "rate", "mean", "seeds")
    return markdown_table(titles, [_sweep_line(folder) for folder in folders])


def _sweep_line(folder: Path) -> list[str]:
    runs, values = _runs(str(folder)), values_of(str(folder))
    rates = ", ".join(f"{rate:g}" for rate in sorted({run["config"]["train"]["lr"] for run in runs}))
    return [folder.parent.name, folder.name, _entries([str(folder)]), rates, _mean(values), str(len(values))]


def _entries(folders: Iterable[str]) -> str:
    counts = {run["trainable_parameters"] for folder in folders for run in _runs(folder)}
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _mean(values: Values) -> str:
    of = spread_of(values.values())
    return number(of.mean) + (f" ± {of.std:.2f}" if of.std is not None else "")


def page(text: str) -> str:
    """The page with all that is generated between its markers."""
    tables = {"claims": f"{summary()}\n\n{claims_table()}", "accounting": accounting_table()}
    tables |= {f"beside {name}": beside_table(**of) for name, of in yaml.safe_load(BESIDE.read_text()).items()}
    tables["errors"] = errors_table()
    tables |= {f"runs {folder}": sweep_table(folder) for folder in RUNS.findall(text)}
    for region, table in tables.items():
        text = put(text, table, region, PAGE)
    return text


def methods_page(text: str) -> str:
    """The page of the methods with the table of the defaults."""
    return put(text, defaults_table(), "defaults", METHODS_PAGE)


def write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    write(PAGE, page(PAGE.read_text()))
    write(METHODS_PAGE, methods_page(METHODS_PAGE.read_text()))
    for path in draw(CLAIMS.with_suffix("")):
        print(path.relative_to(ROOT))
    print(summary())
