"""Plots of result files: they show the numbers of the table, and are drawn only where there is something to see."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capaboost.commands import tables
from capaboost.plots import results as draw
from capaboost.plots.panels import MAX_COLUMNS, grid
from capaboost.plots.results import pareto
from capaboost.tables.compare import Comparison, compare
from capaboost.tables.read import read_results
from tests.commands import finish, start
from tests.run_results import LORA, TIED, trainable, write_run

ROOT = Path(__file__).parents[1]
SEEDS = (1, 2, 3)


def write_study(folder: Path) -> Path:
    """Ranks, modules and densities; the value names its run: 10 r + d + density + seed / 10."""
    for r, d, density in itertools.product((1, 8), (1, 2, 4), (0.25, 0.5)):
        adapter = TIED | {"r": r, "num_tied": d, "density": density}
        for seed in SEEDS:
            value = 10 * r + d + density + seed / 10
            write_run(folder / f"{r}-{d}-{density}", seed, value, adapter)
    for seed in SEEDS:
        write_run(folder / "lora", seed, 50.0 + seed / 10)
        write_run(folder / "linear", seed, 40.0 + 2 * seed, {"method": "linear"})
    return folder


def write_map(folder: Path) -> Path:
    for alpha, lr in ((8.0, 0.001), (8.0, 0.01), (32.0, 0.001)):
        write_run(folder / f"{alpha}-{lr}", 1, 100 * lr + alpha, LORA | {"alpha": alpha}, lr=lr)
    return folder


def table_of(folder: Path, reference: str | None = None) -> Comparison:
    return compare(read_results([folder]), reference)


def plot(name: str, folder: Path, reference: str | None = None) -> Figure:
    return draw.PLOTS[name](table_of(folder, reference))


def points(panel: Axes) -> dict[float, set[float]]:
    """All drawn means by their place on the x axis."""
    found: dict[float, set[float]] = {}
    for container in panel.containers:
        for x, y in zip(*container.lines[0].get_data(), strict=True):
            found.setdefault(float(x), set()).add(round(float(y), 9))
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


def test_what_can_be_drawn_is_and_the_rest_says_why_not(study, tmp_path, capsys):
    assert tables.main([str(study), "--compare", "lora", "--plots", str(tmp_path)]) == 0
    drawn = {"parameters", "rank", "modules", "density", "differences"}
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in drawn for kind in ("png", "svg")
    }
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not drawn" in line]
    assert line.startswith("scale is not drawn: no method has two pairs of alpha and learning rate")


def test_one_result_is_no_plot(tmp_path, capsys):
    write_run(tmp_path / "lora", 1, 90.0)
    assert tables.main([str(tmp_path), "--plots", str(tmp_path / "plots")]) == 0
    assert not (tmp_path / "plots").exists()
    assert capsys.readouterr().out.count(" is not drawn: ") == len(draw.PLOTS)


def test_parameters_are_those_of_the_table(study):
    (panel,) = plot("parameters", study).axes
    expected = {0.0: {44.0}, float(trainable(LORA)): {50.2}}
    for r, d, density in itertools.product((1, 8), (1, 2, 4), (0.25, 0.5)):
        count = trainable({"r": r, "num_tied": d, "density": density})
        expected.setdefault(float(count), set()).add(round(10 * r + d + density + 0.2, 9))
    assert points(panel) == expected


@pytest.mark.parametrize(("name", "shared"), [("rank", True), ("parameters", True), ("modules", False)])
def test_series_at_one_x_stand_side_by_side_and_all_are_seen(name, shared, tmp_path):
    for seed in SEEDS:
        for r in (1, 8):
            write_run(tmp_path / f"lora{r}", seed, 50.0 + seed * r, LORA | {"r": r})
            write_run(tmp_path / f"rslora{r}", seed, 60.0 + seed * r, LORA | {"method": "rslora", "r": r})
        for d in (2, 4) if name == "modules" else ():
            write_run(tmp_path / f"tied{d}", seed, 70.0 + seed * d, TIED | {"num_tied": d})
    (panel,) = plot(name, tmp_path).axes
    panel.figure.canvas.draw()
    marks = [line for line in panel.lines if line.get_marker() not in ("", "None", "|", "_")]
    at = {(x, line): line.get_transform().transform((x, y)) for line in marks for x, y in line.get_xydata()}
    assert all(panel.bbox.contains(*place) for place in at.values())
    for (x, line), (right, _) in at.items():
        beside = [abs(right - other[0]) for (x2, line2), other in at.items() if x2 == x and line2 is not line]
        assert bool(beside) == shared or name == "modules"
        assert all(distance > 3 for distance in beside)


@pytest.mark.parametrize("panels", range(1, 14))
def test_panels_leave_no_hole_in_their_grid(panels):
    figure, axes = grid([[str(i) for i in range(panels)]], {})
    figure.canvas.draw()
    rows = [len(list(of)) for _, of in itertools.groupby(axes, key=lambda axis: round(axis.get_position().y0, 3))]
    assert sum(rows) == panels
    assert max(rows) - min(rows) <= 1
    assert max(rows) <= MAX_COLUMNS
    middles = [(axis.get_position().x0 + axis.get_position().x1) / 2 for axis in axes]
    for row in range(len(rows)):  # the middle of a row is that of the first
        start = sum(rows[:row])
        assert np.mean(middles[start : start + rows[row]]) == pytest.approx(np.mean(middles[: rows[0]]), abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_dominates(seed, tmp_path):
    for number, (r, value) in enumerate(np.random.default_rng(seed).integers((1, 50), (6, 60), (12, 2)).tolist()):
        write_run(tmp_path / str(number), 1, float(value), LORA | {"r": r, "init": str(number)})
    cells = list((table := table_of(tmp_path)).row(table.tasks[0]).values())
    places = {(cell.trainable, cell.spread.mean) for cell in cells}
    front = {(n, v) for n, v in places if not any((m < n and w >= v) or (m <= n and w > v) for m, w in places)}
    found = [(cell.trainable, cell.spread.mean) for cell in pareto(cells)]
    assert found == sorted(front)


@pytest.mark.parametrize(
    ("name", "x", "lines"),
    [("rank", (1, 8), 6), ("modules", (1, 2, 4), 4), ("density", (0.25, 0.5), 6)],
)
def test_a_line_joins_runs_that_differ_in_the_axis_only(name, x, lines, study):
    (panel,) = plot(name, study).axes
    drawn = [container.lines[0].get_data() for container in panel.containers]
    joined = [(tuple(at), tuple(y)) for at, y in drawn if len(at) > 1]
    assert len(joined) == lines
    assert {at for at, _ in joined} == {x}
    step = {"rank": 70, "modules": 1, "density": 0.25}[name]
    assert all(y[1] - y[0] == pytest.approx(step) for _, y in joined)


def test_kinds_of_masks_are_lines_of_their_own(tmp_path):
    for mask, density in itertools.product(("random", "same"), (0.25, 0.5)):
        write_run(tmp_path / f"{mask}{density}", 1, density, TIED | {"mask": mask, "density": density})
    for n in (1, 2):
        write_run(tmp_path / f"nm{n}", 1, 3.0, TIED | {"mask": "nm", "n": n, "m": 4, "density": n / 4})
    figure = plot("density", tmp_path)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [f"capaboost-lora (mask {mask})" for mask in ("nm", "random", "same")]


def test_a_rate_and_a_scale_that_were_tuned_do_not_break_a_line(tmp_path):
    for r, lr in ((1, 0.01), (8, 0.001)):
        write_run(tmp_path / str(r), 1, 90.0 + r, LORA | {"r": r, "alpha": 32.0 / r}, lr=lr)
    (panel,) = plot("rank", tmp_path).axes
    assert points(panel) == {1.0: {91.0}, 8.0: {98.0}}


def test_the_forest_shows_the_intervals_of_the_table(tmp_path):
    for r, seed in itertools.product((4, 8, 16), SEEDS):
        write_run(tmp_path / f"{r}", seed, 50 + r + seed**2 / r, LORA | {"r": r})
        write_run(tmp_path / "linear", seed, 40.0 + 2 * seed, {"method": "linear"})
    table = table_of(tmp_path, "lora (r 8)")
    (panel,) = draw.PLOTS["differences"](table).axes
    rows = [text.get_text() for text in panel.get_yticklabels()]
    drawn = {
        rows[int(line.get_ydata()[0])]: tuple(line.get_xdata())
        for line in panel.lines
        if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2
    }
    expected = {
        label: cell.difference.interval for label, cell in table.row(table.tasks[0]).items() if cell.difference
    }
    assert drawn == expected
    assert rows == ["digits", *(method for method in table.methods if method != "lora (r 8)")]


def test_many_methods_are_sorted_panels_beside_each_other(tmp_path):
    """A filled point is what the verdict calls a difference, and colours are those of families."""
    adapters = {f"r{r}": LORA | {"r": r} for r in range(1, 13)} | {"probe": {"method": "linear"}}
    adapters |= {"vpt": LORA | {"method": "vpt-deep"}, "adapter": LORA | {"method": "padapter"}}
    for number, (name, adapter) in enumerate(adapters.items()):
        for task, sign in (("a", 1), ("b", -1)):
            for seed in SEEDS:
                value = 50 + sign * number + (0.1 * seed * number if number % 2 else 3 * (-1) ** (seed * number))
                write_run(tmp_path / name / task, seed, value, adapter, task=task)
    table = table_of(tmp_path, "lora (r 1)")
    figure = draw.PLOTS["differences"](table)
    assert len(figure.axes) == 2
    for panel, task in zip(figure.axes, table.tasks, strict=True):
        row = {method: cell for method, cell in table.row(task).items() if cell.difference}
        names = [text.get_text() for text in panel.get_yticklabels()]
        assert names == sorted(row, key=lambda method: -row[method].difference.mean)
        assert panel.get_title(loc="left") == task.task
        dots = {names[int(line.get_ydata()[0])]: line for line in panel.lines if line.get_marker() == "o"}
        for method, dot in dots.items():
            assert dot.get_xdata()[0] == pytest.approx(row[method].difference.mean)
            assert (dot.get_markerfacecolor() != "white") == row[method].verdict.differs
    colors = {text.get_text(): text.get_color() for text in figure.axes[0].get_yticklabels()}
    assert len({colors[name] for name in ("lora (r 2)", "linear", "vpt-deep", "padapter")}) == 4
    assert colors["lora (r 2)"] == colors["lora (r 9)"]


def test_the_map_has_a_number_in_each_cell_and_marks_the_best(tmp_path):
    (panel,) = plot("scale", write_map(tmp_path)).axes
    shown = {text.get_position(): text.get_text() for text in panel.texts}
    assert shown == {(0, 0): "8.1", (1, 0): "9.0", (0, 1): "32.1"}
    (mark,) = panel.patches
    assert mark.get_xy() == (-0.5, 0.5)
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0.001", "0.01"]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["8", "32"]
    assert panel.images[0].norm.vmin == 8.1


def test_what_was_selected_from_a_grid_is_no_cell(tmp_path):
    write_map(tmp_path)
    write_run(tmp_path / "grid", 1, 99.0, lr_grid={"0.001": 1.0, "0.01": 2.0})
    tuning = {"chosen": {"adapter.alpha": 16.0}, "grid": {"alpha=16": 1.0, "alpha=32": 0.0}}
    write_run(tmp_path / "tuned", 1, 99.0, tuning=tuning)
    (panel,) = plot("scale", tmp_path).axes
    assert len(panel.texts) == 3


def test_too_many_series_are_refused_in_a_line(tmp_path, capsys):
    for init, r in itertools.product(range(20), (1, 2)):
        write_run(tmp_path / f"{init}-{r}", 1, 90.0, LORA | {"r": r, "init": str(init)})
    assert tables.main([str(tmp_path), "--plots", str(tmp_path / "plots")]) == 0
    assert "rank is not drawn: 20 series are too many" in capsys.readouterr().out


def test_another_process_draws_the_same_bytes(tmp_path, monkeypatch):
    runs = write_map(tmp_path / "runs")
    write_run(runs / "tied", 1, 9.0, TIED)
    flags = [str(runs), "--compare", "capaboost-lora", "--plots"]
    monkeypatch.setenv("MATPLOTLIBRC", str(ROOT))
    finish(start("-m", "capaboost", "tables", *flags, str(tmp_path / "there")))
    assert tables.main([*flags, str(tmp_path / "here")]) == 0
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / at).iterdir()} for at in ("here", "there"))
    assert here == there
    assert {"parameters.svg", "differences.png", "scale.svg"} <= here.keys()


def test_a_folder_that_cannot_be_written_is_found_first(study, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert tables.main([str(study), "--csv", str(tmp_path / "t.csv"), "--plots", str(tmp_path / "file" / "x")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: --plots ")
    assert not (tmp_path / "t.csv").exists()
