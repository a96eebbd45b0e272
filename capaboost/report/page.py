"""One self-contained HTML page of a run, or of the runs of a sweep: figures, tables, settings, where it comes from."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from capaboost.tables.compare import Comparison, compare
from capaboost.tables.read import failed_runs, read_results
from capaboost.tables.rows import make_rows, origin_notes
from capaboost.tables.write import Layout, of_comparison, of_rows
from capaboost.training.run_folder import ADAPTER, METRICS
from capaboost.training.settings import flat
from capaboost_core.errors import UserError

COLOURS = ("#8250df", "#0969da", "#1a7f37", "#cf222e", "#bf8700", "#57606a", "#1b7c83", "#bc4c00")
NOT_CURVES = ("epoch", "images_per_second", "examples_per_second", "sentences_per_second")
WRITTEN = 20  # classes up to which each count of their confusion is written
TITLES = {"lr": "learning rate"}
CURVES = 40  # runs whose curves one figure can show


@dataclass(frozen=True)
class Part:
    """A part of the page: a figure as HTML, or a table; `is_half` of one that stands beside another."""

    title: str
    note: str = ""
    figure: str = ""
    titles: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    is_half: bool = False


def render(folder: Path, reference: str | None) -> str:
    """The page of all results under a folder.

    Args:
        folder: A run's, or one with runs below it.
        reference: The method that the others are compared with, if they are.

    Raises:
        UserError: If there are no results, or no method of that name.
    """
    results = read_results([folder])
    parts = runs_parts(folder, results, reference) if len(results) > 1 else run_parts(*next(iter(results.items())))
    loader = PackageLoader("capaboost.report", "")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return templates.get_template("page.html").render(
        title=_title(folder, results), parts=list(parts), script=get_plotlyjs()
    )


def _title(folder: Path, results: Mapping[Path, dict[str, Any]]) -> str:
    if len(results) > 1:
        return f"{len(results)} runs in {folder.name or folder.resolve().name}"
    (result,) = results.values()
    return f"{result['method']} on {result['task']}"


def run_parts(path: Path, result: dict[str, Any]) -> Iterator[Part]:
    """The parts of the page of one run."""
    folder = path.parent
    yield _figures_of(result)
    yield from _curves({result["method"]: [folder]})
    yield from _confusion(folder / "confusion.csv")
    yield from _ranks(folder / ADAPTER)
    yield _settings(result)
    yield _provenance(result)


def runs_parts(folder: Path, results: dict[Path, dict[str, Any]], reference: str | None) -> Iterator[Part]:
    """The parts of the page of several runs."""
    table, notes = compare(results, reference), [f"Failed: {line}." for line in failed_runs([folder])]
    plain = of_rows(make_rows(results), [*origin_notes(results), *notes])
    yield _table(of_comparison(table, notes) if reference else plain)
    yield from _against_parameters(table)
    by_method: dict[str, list[Path]] = defaultdict(list)
    for (_, method), cell in table.cells.items():
        of_cell = {id(run) for run in cell.group.runs}
        by_method[method] += [path.parent for path, run in results.items() if id(run) in of_cell]
    yield from _curves(by_method)
    yield _provenance(
        next(iter(results.values())), "The first run's; commits and versions that differ are noted above."
    )


def _table(layout: Layout) -> Part:
    rows = tuple(tuple("\n".join(cell.lines) for cell in row) for row in layout.rows)
    return Part("Results", "\n".join(layout.notes), titles=layout.titles, rows=rows)


def _figures_of(result: dict[str, Any]) -> Part:
    """The result, and what it cost."""
    rows = [
        (result["metric"], f"{result['value']:.2f}"),
        (
            "trained parameters",
            f"{result['trainable_parameters']:,} ({result['percent_trainable']:.3g} % of the model)",
        ),
        ("head", f"{result['head_parameters']:,} parameters"),
        ("adapter file", f"{result['adapter_file_bytes'] / 2**20:.2f} MiB"),
        ("epochs", f"{result['epochs']}, tested after epoch {result['selected_epoch']}"),
        ("time", f"{result['wall_seconds']:.0f} s on {result['device']}"),
        ("rows", result.get("split_note") or ""),
    ]
    others = {name: value for name, value in result["test_metrics"].items() if name != result["metric"]}
    rows[1:1] = [(name, f"{value:.2f}") for name, value in others.items()]
    return Part("Result", titles=("", ""), rows=tuple(rows))


def _curves(folders: Mapping[str, list[Path]]) -> Iterator[Part]:
    """A figure for each metric over the epochs, a colour for each method."""
    lines = {
        (method, folder): _metrics(folder / METRICS)
        for method, of_method in folders.items()
        for folder in of_method[: max(1, CURVES // len(folders))]
    }
    names = dict.fromkeys(name for values in lines.values() for line in values for name in line)
    colour = dict(zip(folders, _cycle(len(folders)), strict=True))
    for name in (name for name in names if name not in NOT_CURVES):
        figure = go.Figure()
        shown: set[str] = set()
        for (method, folder), values in lines.items():
            points = [(line["epoch"], line[name]) for line in values if name in line]
            figure.add_scatter(
                x=[x for x, _ in points], y=[y for _, y in points], name=method, mode="lines+markers",
                legendgroup=method, showlegend=len(folders) > 1 and method not in shown, line_color=colour[method],
                hovertext=str(folder),
            )  # fmt: skip
            shown.add(method)
        yield Part(TITLES.get(name, name.replace("_", " ")), figure=_html(figure, x="epoch", height=280), is_half=True)


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _metrics(path: Path) -> list[dict[str, float]]:
    """The finished lines of a run's metrics; none where the file is missing."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _confusion(path: Path) -> Iterator[Part]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        (_, _, _, *classes), *rows = csv.reader(file)
    counts = [[int(count) for count in row[3:]] for row in rows]
    figure = go.Figure(go.Heatmap(z=counts, x=classes, y=[row[0] for row in rows], colorscale="Purples"))
    figure.update_traces(showscale=False, texttemplate="%{z}" if len(rows) <= WRITTEN else None)
    figure.update_yaxes(autorange="reversed", title="class")
    note = "Rows are the true classes. " + _worst(rows)
    yield Part("Confusion", note, _html(figure, x="predicted", height=min(900, 260 + 22 * len(rows))))


def _worst(rows: list[list[str]]) -> str:
    least = min((row for row in rows if row[2]), key=lambda row: float(row[2]), default=None)
    return f"The lowest accuracy of a class is {float(least[2]):.1f} %, of {least[0]}." if least else ""


def _ranks(adapter: Path) -> Iterator[Part]:
    """Singular values of each delta weight, as far as the method has some and the base can be built here."""
    from capaboost.report.rank import model_ranks
    from capaboost.report.rank_study import load_saved

    try:
        ranks = model_ranks(load_saved(adapter))
    except UserError as error:
        yield Part("Rank", f"Not shown: {error}.")
        return
    figure = go.Figure()
    for of in ranks:
        values = [value for value in of.spectrum.values.tolist() if value > 0]
        name = f"{of.layer}, rows {of.start} to {of.stop}: rank {of.spectrum.rank()}"
        figure.add_scatter(
            y=[value / values[0] for value in values], x=list(range(1, len(values) + 1)), name=name, mode="lines",
            showlegend=False, line={"color": COLOURS[0], "width": 1},
        )  # fmt: skip
    figure.update_yaxes(type="log", title="share of the largest")
    least, most = (choose(of.spectrum.rank() for of in ranks) for choose in (min, max))
    mean = fmean(of.spectrum.effective_rank for of in ranks)
    note = f"{len(ranks)} delta weights of rank {least} to {most}; their effective rank is {mean:.1f} on average."
    yield Part("Singular values of the delta weights", note, _html(figure, x="number"))


def _against_parameters(table: Comparison) -> Iterator[Part]:
    """A figure for each task: value over trained parameters, with the standard deviation over seeds."""
    colour = dict(zip(table.methods, _cycle(len(table.methods)), strict=True))
    for task in table.tasks:
        figure = go.Figure()
        for method, cell in table.row(task).items():
            figure.add_scatter(
                x=[cell.trainable], y=[cell.spread.mean], name=method, mode="markers", marker_color=colour[method],
                error_y={"type": "data", "array": [cell.spread.std or 0]}, marker_size=10,
            )  # fmt: skip
        least = min(cell.trainable for cell in table.row(task).values())
        figure.update_xaxes(type="log" if least else "linear")  # a probe trains nothing but the head
        figure.update_yaxes(title=task.metric)
        yield Part(f"{task.task}: {task.metric} over trained parameters", figure=_html(figure, x="trained parameters"))


def _settings(result: dict[str, Any]) -> Part:
    rows = tuple((name, str(value)) for name, value in flat(result["config"]).items())
    return Part("Settings", titles=("setting", "value"), rows=rows)


def _provenance(result: dict[str, Any], note: str = "") -> Part:
    """Where the numbers come from."""
    git = result.get("git") or {}
    commit = f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}"
    rows = [("command", result["command"]), ("commit", commit), ("device", result["device"])]
    rows += [(name, str(result[name])) for name in ("data_hash", "weights_hash", "processes") if result.get(name)]
    rows += list((result.get("versions") or {}).items())
    return Part("Where it comes from", note, titles=("", ""), rows=tuple(rows))


def _html(figure: go.Figure, x: str, height: int = 340) -> str:
    figure.update_xaxes(title=x)
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 10, "b": 45},
        legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False})
