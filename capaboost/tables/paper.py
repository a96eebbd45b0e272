r"""A comparison as a paper prints it, in LaTeX: a line for each method, a column for each task, and the average.

Within a column the best mean is bold and the second underlined, by the values that are shown, so that equal ones are
marked alike. What stands below a comparison elsewhere is a comment here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

from capaboost.tables.compare import Cell, Comparison
from capaboost.tables.groups import Task
from capaboost.tables.notes import varying
from capaboost.tables.write import escape
from capaboost.training.run_folder import worth

MOST_LEVEL = 8  # tasks, with more of which their names are turned
MISSING, FEWER = "--", r"$^\dagger$"


def to_paper(table: Comparison, notes: Sequence[str], with_spread: bool = False) -> str:
    r"""A tabular with the rules of booktabs, for `\input` in a table environment.

    Args:
        table: The methods beside each other.
        notes: Sentences, which become comments.
        with_spread: Show the sample standard deviation over seeds beside each mean.
    """
    groups = _grouped(table.tasks)
    tasks = [task for _, of_group in groups for task in of_group]
    packages = "booktabs, graphicx" if len(tasks) > MOST_LEVEL else "booktabs"
    lines = [f"% in the preamble: \\usepackage{{{packages}}}"]
    lines += [f"\\begin{{tabular}}{{lr{'c' * len(tasks)}c}}", "\\toprule", *_heads(table, groups), "\\midrule"]
    columns = [_column([_cell(table, task, method) for method in table.methods], with_spread) for task in tasks]
    columns = [_parameters(table)[1], *columns, _average(table, tasks)]
    for method, *cells in zip(table.methods, *columns, strict=True):
        lines.append(_line([escape(method), *cells]))
    lines += ["\\bottomrule", "\\end{tabular}"]
    if any(cell.missing for cell in table.cells.values()):
        lines.append(f"\\par\\smallskip{{\\footnotesize {FEWER} Fewer seeds than other methods of the task.\\par}}")
    return "\n".join([*lines, *(f"% {' '.join(note.split())}" for note in notes)]) + "\n"


def _grouped(tasks: list[Task]) -> list[tuple[str, list[Task]]]:
    """The tasks of VTAB-1k by its groups, in its order; any others in one group without a name."""
    from capaboost_vision.vtab.tasks import GROUPS

    order = {name: (i, group) for i, (group, name) in enumerate((g, n) for g, names in GROUPS.items() for n in names)}
    if not all(task.task in order for task in tasks):
        return [("", tasks)]
    ordered = sorted(tasks, key=lambda task: (order[task.task][0], task))
    named = [(group, list(of_group)) for group, of_group in groupby(ordered, key=lambda task: order[task.task][1])]
    return named if len(named) > 1 else [("", ordered)]


def _heads(table: Comparison, groups: list[tuple[str, list[Task]]]) -> list[str]:
    names = _names(table.tasks)
    titles = [escape(names[task]) for _, of_group in groups for task in of_group]
    if len(titles) > MOST_LEVEL:
        titles = [f"\\rotatebox{{90}}{{{title}}}" for title in titles]
    heads, first = [], 3
    if len(groups) > 1:
        cells, rules = ["", ""], []
        for group, of_group in groups:
            cells.append(f"\\multicolumn{{{len(of_group)}}}{{c}}{{{group.capitalize()}}}")
            rules.append(f"\\cmidrule(lr){{{first}-{first + len(of_group) - 1}}}")
            first += len(of_group)
        heads = [_line([*cells, ""]), " ".join(rules)]
    return [*heads, _line(["Method", f"Params ({_parameters(table)[0]})", *titles, "Average"])]


def _names(tasks: list[Task]) -> dict[Task, str]:
    """A task's name, with what else differs between tasks; with the metric and the split where it needs them."""
    fields = varying(tasks)
    for left_out in (("metric", "split_note"), ()):
        names = {task: ", ".join(getattr(task, name) for name in fields if name not in left_out) for task in tasks}
        if len(set(names.values())) == len(tasks):
            break
    return names


def _parameters(table: Comparison) -> tuple[str, list[str]]:
    """The unit, and the trained parameters of each method, without the head, as means over its tasks."""
    counts = [fmean(cell.trainable for (_, of), cell in table.cells.items() if of == name) for name in table.methods]
    unit, size = ("M", 1e6) if max(counts) >= 1e5 else ("k", 1e3)
    digits = 1 if size == 1e3 else 2 if max(counts) >= 1e6 else 3
    return unit, [f"{count / size:.{digits}f}" for count in counts]


def _cell(table: Comparison, task: Task, method: str) -> Cell | None:
    return table.cells.get((task, method))


def _column(cells: list[Cell | None], with_spread: bool) -> list[str]:
    metric = next((cell.group.task.metric for cell in cells if cell), "")
    marked = _marked([cell and cell.spread.mean for cell in cells], metric)
    return [
        text + (_spread(cell) if with_spread else "") + (FEWER if cell.missing else "") if cell else text
        for text, cell in zip(marked, cells, strict=True)
    ]


def _spread(cell: Cell) -> str:
    return "" if cell.spread.std is None else f" {{\\scriptsize $\\pm$ {cell.spread.std:.2f}}}"


def _average(table: Comparison, tasks: list[Task]) -> list[str]:
    """The mean over all tasks, each weighed alike, of the methods that have them all; none of unlike metrics."""
    if len({worth(task.metric, 1.0) for task in tasks}) > 1:
        return [MISSING] * len(table.methods)
    means = []
    for method in table.methods:
        cells = [_cell(table, task, method) for task in tasks]
        means.append(fmean(cell.spread.mean for cell in cells if cell) if all(cells) else None)
    return _marked(means, tasks[0].metric)


def _marked(values: Sequence[float | None], metric: str) -> list[str]:
    """Of two values or more the best in bold, of three or more the second underlined."""
    shown = [None if value is None else round(value, 2) for value in values]
    known = [value for value in shown if value is not None]
    order = sorted(set(known), key=lambda value: worth(metric, value), reverse=True)
    best = order[0] if len(known) > 1 else None
    second = order[1] if len(known) > 2 and len(order) > 1 else None
    return [_mark(value, best, second) for value in shown]


def _mark(value: float | None, best: float | None, second: float | None) -> str:
    if value is None:
        return MISSING
    text = f"{value:.2f}".replace("-", "$-$")
    if value == best:
        return f"\\textbf{{{text}}}"
    return f"\\underline{{{text}}}" if value == second else text


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
