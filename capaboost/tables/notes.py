"""What stands below a comparison: how to read it, the settings of each method, and the runs that it lacks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product

from capaboost.tables.compare import Comparison, ordering_task
from capaboost.tables.groups import Group, Task, unlike
from capaboost.tables.rows import format_means
from capaboost.tables.statistics import FEW, MARGIN, POWER


def varying(tasks: list[Task]) -> list[str]:
    """The fields that name a task in a table of these: its name and metric, and what is not the same everywhere.

    Which rows the splits hold is shown only if two tasks would look the same without it.
    """
    names = [name for name in ("task", "model", "protocol") if name == "task" or len(_values(tasks, name)) > 1]
    unlike = {tuple(getattr(task, name) for name in (*names, "metric")) for task in tasks}
    return [*names, "metric", *(["split_note"] if len(unlike) < len(tasks) else [])]


def task_names(tasks: list[Task]) -> dict[Task, str]:
    """One line for each task, with as many of its fields as distinguish it."""
    for count in range(1, len(Task._fields) + 1):
        names = {task: ", ".join(task[:count]) for task in tasks}
        if len(set(names.values())) == len(tasks):
            break
    return names


def notes_on(table: Comparison) -> list[str]:
    if table.is_ranking:  # whose lines have their settings
        usual = ", ".join(sorted(usual_settings(table)))
        settings = [f"Where a line has nothing else: {usual}."] if usual else []
    else:
        settings = [f"Settings of {of}: {'; '.join(settings_lines(table, of))}." for of in table.methods]
    said = [_how_to_read(table), *_about_verdicts(table), *_order(table), _common(table)]
    return [*said, *_vtab_means(table), *settings, *_origins(table), *_missing(table)]


def _how_to_read(table: Comparison) -> str:
    return (
        "Mean ± sample standard deviation over seeds, the best mean of a task marked. Below it the mean difference to "
        f"{table.reference} over the seeds of both, with its 95 % interval (Student's t over paired seeds); one pair "
        "gives no interval."
    )


def _about_verdicts(table: Comparison) -> Iterator[str]:
    verdicts = [cell.verdict for cell in table.cells.values() if cell.verdict]
    if not verdicts:
        return
    yield (
        "Below that the verdict: differs, at 5 % for all differences of a task together (Holm); equivalent within "
        f"{MARGIN:g}, by two one-sided t-tests at 5 % each, uncorrected; else open, with the pairs of seeds that "
        f"would find a difference of {MARGIN:g} with {100 * POWER:g} % power."
    )
    if any(verdict.pooled for verdict in verdicts):
        yield (
            f"Verdicts of {FEW + 1} pairs or fewer rest on a deviation that is pooled over the methods of the task, "
            "but for methods that deviate otherwise; intervals are of a method's own pairs alone."
        )


def _order(table: Comparison) -> Iterator[str]:
    names = task_names(table.tasks)
    if not table.is_ranking or len(table.tasks) < 2:
        return
    pairs = ", ".join(f"{names[a]} and {names[b]} {of:.2f}" for (a, b), of in table.agreement.items())
    task = ordering_task(table.cells, table.agreement)
    by = "the mean over tasks" if task is None else f"{names[task]} alone, since tasks do not agree on an order"
    yield f"Order of lines: by {by}." + (f" Rank correlation (Spearman): {pairs}." if pairs else "")


def _vtab_means(table: Comparison) -> Iterator[str]:
    """A line for each method that has enough of the tasks, of one model, protocol and metric."""
    kinds = dict.fromkeys((task.model, task.protocol, task.metric) for task in table.tasks)
    for kind, method in product(kinds, table.methods):
        tasks = [task for task in table.tasks if (task.model, task.protocol, task.metric) == kind]
        cells = {task.task: table.cells[task, method] for task in tasks if (task, method) in table.cells}
        means = format_means({task: cell.spread.mean for task, cell in cells.items()})
        if means:
            yield f"VTAB-1k, {method}{f' ({kind[0]}, {kind[1]})' if len(kinds) > 1 else ''}: {means}."


def _common(table: Comparison) -> str:
    fields = [name for name in ("model", "protocol") if len(_values(table.tasks, name)) == 1]
    devices = sorted({run["device"] for cell in table.cells.values() for run in cell.group.runs})
    parts = [*(f"{name} {getattr(table.tasks[0], name)}" for name in fields), f"run on {', '.join(devices)}"]
    return f"In all rows: {'; '.join(parts)}."


def settings_lines(table: Comparison, method: str, usual: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """A method's settings but the usual: one line, or where tasks have not the same a line for the tasks of each."""
    names = task_names(table.tasks)
    groups = _groups(table)
    places = defaultdict(list)
    for task in table.tasks:
        if cell := table.cells.get((task, method)):
            places[cell.group.shown_settings(groups, usual) or "none"].append(names[task])
    if len(places) == 1:
        return tuple(places)
    return tuple(f"{text} ({', '.join(tasks)})" for text, tasks in places.items())


def usual_settings(table: Comparison) -> frozenset[str]:
    """Of the settings in which methods differ, what most cells have."""
    groups = _groups(table)
    counts = Counter(text for group in groups for text in group.differences(groups))
    return frozenset(text for text, count in counts.items() if 2 * count > len(groups))


def _groups(table: Comparison) -> list[Group]:
    return [cell.group for cell in table.cells.values()]


def _origins(table: Comparison) -> list[str]:
    """Runs are paired across the methods of a task, so all of these stand together."""
    names = task_names(table.tasks)
    of_task = ((names[task], [run for cell in table.row(task).values() for run in cell.group.runs])
               for task in table.tasks)  # fmt: skip
    return unlike(of_task, "tasks")


def _missing(table: Comparison) -> Iterator[str]:
    """A line for each method that lacks seeds which another method has."""
    names = task_names(table.tasks)
    for method in table.methods:
        cells = {task: table.cells.get((task, method)) for task in table.tasks}
        lacking = {task: cell.missing if cell else table.seeds(task) for task, cell in cells.items()}
        places = [
            f"{names[task]} (seed{'s'[len(of) == 1 :]} {', '.join(map(str, of))})"
            for task, of in lacking.items()
            if of
        ]
        if places:
            yield f"Missing runs of {method}: {', '.join(places)}."


def _values(tasks: list[Task], name: str) -> set[str]:
    return {getattr(task, name) for task in tasks}
