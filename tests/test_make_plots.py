"""Plots come from the JSON alone, the same bytes each time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capaboost.commands import plots
from capaboost.plots import draw as benchmarks
from capaboost.plots.draw import rank_parameters, spectra

ROOT = Path(__file__).parents[1]


def combination(r, num_tied, width=24):
    bound = min(r * num_tied, width)
    increments = [
        {
            "shape": [width, width],
            "rank": bound,
            "bound": bound,
            "singular_values": [scale / k for k in range(1, bound + 1)],
        }
        for scale in (1.0, 3.0)
    ]
    counts = {"trainable_parameters": 96 * r * num_tied, "parameter_factor": r * num_tied / 8}
    return {"r": r, "num_tied": num_tied, "increments": increments, **counts}


def theorem():
    rows = [{"r": r, "ranks": {str(min(2 * r, 24)): 4}, "draws": 4} for r in (4, 12, 24)]
    masked = [
        {"mask": mask, "density": density, "ranks": {"3": 1, "6": 3}, "draws": 4}
        for mask in ("random", "same")
        for density in (0.1, 0.5, 1.0)
    ]
    return {"size": 24, "independent": rows, "masked_r": 3, "masked": masked}


STUDY = {
    "plots": ["spectra", "rank-parameters"],
    "combinations": [combination(r, d) for r in (4, 8) for d in (1, 2, 4)],
}
ONE = {"plots": ["spectra"], "combinations": [combination(5, 3)]}
STEP = {
    "plots": ["peers"],
    "benchmark": "step",
    "settings": {"model": "vit", "batch": 8, "precision": "fp32", "mode": "eager"},
    "device": "cpu",
    "allocator": {},
    "peers": {"peft": {"values": [6, 9, 12]}, "floor": {"values": [2, 3, 6]}, "capaboost-d2": {"values": [2, 6, 9]}},
}
PARTS = STEP | {
    "plots": ["parts"],
    "benchmark": "parts",
    "peers": {
        "capaboost-d1": {"median": 2, "small_ms": 30, "small_at_frozen_rate_ms": 10, "copies_ms": 0},
        "capaboost-d2": {"median": 2, "small_ms": 40, "small_at_frozen_rate_ms": 20, "copies_ms": 10},
    },
}
REPORTS = {
    "a/study.json": STUDY,
    "b/one.json": ONE,
    "c/step.json": STEP,
    "c/parts.json": PARTS,
    "theorem.json": {"plots": ["theorem"], **theorem()},
}
IMAGES = ["a/study-rank-parameters", "a/study-spectra", "b/one", "c/parts", "c/step", "theorem"]


def write(folder: Path, reports: dict) -> Path:
    for name, report in reports.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report))
    return folder


def images(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.suffix != ".json"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = write(tmp_path_factory.mktemp("plots"), REPORTS | {"other.json": {"value": 1}, "list.json": [1]})
    assert plots.main([str(folder)]) == 0
    return folder


def test_every_report_gets_its_plots_and_no_other_file_does(drawn):
    assert sorted(images(drawn)) == sorted(f"{name}.{suffix}" for name in IMAGES for suffix in ("png", "svg"))


def test_another_process_draws_the_same_bytes_elsewhere(drawn, tmp_path):
    folder = write(tmp_path, REPORTS)
    command = [sys.executable, "-m", "capaboost", "plots", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(ROOT)}
    subprocess.run(command, cwd=ROOT, check=True, env=environment, capture_output=True)
    assert images(folder) == images(drawn)


def test_a_plot_shows_what_its_report_says(drawn):
    figure = rank_parameters(STUDY)
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines[0.5, 1] == (4, 8)
    assert lines[2, 4] == (16, 24)  # d = 4: r = 8 meets the width
    assert "(768)" in figure.axes[0].get_xlabel()
    assert "width 24" in [text.get_text() for text in figure.axes[0].texts]
    panels = spectra(STUDY).axes
    assert [len(line.get_xdata()) for line in panels[0].lines] == [4, 8, 16]
    assert panels[1].lines[1].get_ydata()[:4] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])  # over the largest


def test_peers_are_divided_by_the_floor_repeat_by_repeat():
    (panel,) = benchmarks.peers(STEP).axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["peft", "capaboost-d2"]
    assert [text.get_text() for text in panel.texts] == ["3.000", "1.500"]  # of 3, 3, 2 and of 1, 2, 1.5
    spans = [
        tuple(line.get_xdata()) for line in panel.lines if len(set(line.get_ydata())) == 1 < len(line.get_ydata())
    ]
    assert spans == [(2.5, 3), (1.25, 1.75)]
    without = STEP | {"peers": {name: STEP["peers"][name] for name in ("peft", "capaboost-d2")}}
    (panel,) = benchmarks.peers(without).axes
    assert [text.get_text() for text in panel.texts] == ["0.667"]
    assert "time of peft" in panel.get_xlabel()


def test_parts_are_stacked_and_add_up():
    (panel,) = benchmarks.parts(PARTS).axes
    bars = [(bar.get_y() > 0.5, bar.get_x(), bar.get_width()) for bar in panel.patches]
    assert bars == [(False, 0, 10), (False, 10, 20), (False, 30, 0), (True, 0, 20), (True, 20, 20), (True, 40, 10)]
    assert [text.get_text() for text in panel.texts] == ["30 ms, 1.5 % of the step", "50 ms, 2.5 % of the step"]


def test_layers_of_lower_rank_shorten_no_line():
    report = json.loads(json.dumps(ONE))
    for increment, rank in zip(report["combinations"][0]["increments"], (0, 2), strict=True):
        increment["rank"] = rank
    (line,) = spectra(report).axes[0].lines
    assert list(line.get_ydata()) == [1, 0.5]
    report["combinations"][0]["increments"][1]["rank"] = 0  # not trained
    assert not spectra(report).axes[0].lines


def test_changed_numbers_change_the_plot(drawn, tmp_path):
    changed = json.loads(json.dumps(REPORTS["theorem.json"]))
    changed["independent"][0]["ranks"] = {"7": 4}
    assert plots.main([str(write(tmp_path, {"theorem.json": changed}))]) == 0
    assert (tmp_path / "theorem.svg").read_bytes() != (drawn / "theorem.svg").read_bytes()


WRONG = {
    "nothing": ({}, "no report with plots"),
    "unknown": ({"x.json": {"plots": ["pie"]}}, "known plots: spectra"),
    "lacking": ({"x.json": {"plots": ["theorem"]}}, "lacks what the plot theorem needs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_draws_nothing(case, tmp_path, capsys):
    reports, message = WRONG[case]
    assert plots.main([str(write(tmp_path, reports))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not images(tmp_path)


def test_broken_json_is_one_line(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{")
    assert plots.main([str(tmp_path)]) == 2
    assert "not readable JSON" in capsys.readouterr().err
