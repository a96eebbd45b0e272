"""Published results are quoted whole: their means are those that papers print, and the page is that of the data."""

import json
import sys
from pathlib import Path

import pytest

from capaboost.tables.write import fill
from tests.run_results import FACT, ORDER

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "make"))

import published  # noqa: E402

VTAB = {row["name"]: row for row in published.vtab_rows()}
ROWS = [*VTAB.values(), *published.glue_rows()]
KNOWN = [(row, entry) for row in ROWS for entry in row.get("published", ()) if entry["of"] in row["means"]]


@pytest.mark.parametrize(
    ("name", "of_19", "of_groups"),
    [
        ("LoRA, NOAH's runs", 72.25, 74.60),
        ("FacT-TK", 73.23, 75.55),
        ("GPS", 75.18, 77.47),
        ("HST", 75.99, 78.13),
        ("DTL", 74.58, 76.76),
        ("Hydra", 74.21, 76.48),
        ("RLRR", 74.5, 76.7),  # its own paper, and PACE's
        ("SSF", 73.1, 75.69),  # V-PETL-Bench, and DyT's paper
    ],
)
def test_both_averages_of_a_row(name, of_19, of_groups):
    means = VTAB[name]["means"]
    assert (means["19"], means["groups"]) == pytest.approx((of_19, of_groups), abs=0.055)


@pytest.mark.parametrize(
    ("name", "of_12"), [("LoRA", 72.38), ("CAPABOOST-LoRA (d=2)", 73.20), ("CAPABOOST-LoRA (d=4)", 73.41)]
)
def test_capaboosts_rows_have_the_mean_of_their_twelve_tasks_alone(name, of_12):
    assert VTAB[name]["means"] == {"12": pytest.approx(of_12, abs=0.01)}


@pytest.mark.parametrize(
    ("row", "entry"), KNOWN, ids=[f"{row['name']}, {entry['of']} {entry['mean']}" for row, entry in KNOWN]
)
def test_a_printed_mean_follows_from_the_digits_or_a_note_says_that_it_does_not(row, entry):
    """Within half a unit of the printed mean's last digit and half a unit of the scores'."""
    rounding = _half_unit(entry["mean"]) + max(_half_unit(str(score)) for score in _numbers(row["scores"].values()))
    follows = abs(row["means"][entry["of"]] - float(entry["mean"])) <= rounding + 1e-9
    assert follows or "note" in entry
    assert "row_of" in row or follows is ("note" not in entry), "a note that is idle"


def test_means_of_glue_count_what_their_names_say():
    tasks = ("CoLA", "SST-2", "MNLI", "QNLI", "RTE")
    scores = dict.fromkeys(tasks, 80) | {"MRPC": [88, 92], "QQP": [72, 64], "STS-B": [80, 70]}
    eleven, six = (5 * 80 + 88 + 92 + 72 + 64 + 80 + 70) / 11, (4 * 80 + 88 + 80) / 6
    expected = {"8": 80, "8, F1": 79.5, "all numbers": eleven, "6": six}
    assert published.glue_means(scores) == pytest.approx(expected)
    only_f1 = scores | {"MRPC": [None, 92], "QQP": [None, 64], "STS-B": 80}
    assert published.glue_means(only_f1) == {"8, F1": 79.5}
    without = {task: score for task, score in scores.items() if task not in ("MNLI", "QQP")}
    assert published.glue_means(without) == {"6": pytest.approx(six)}


def test_a_row_has_all_its_tasks_or_says_why_not():
    for row in VTAB.values():
        scores = row["scores"]
        assert len(scores) in (0, 12, 19), row["name"]
        assert all(0 < score < 100 for score in scores.values())
        assert scores or any("not found" in note for note in row["notes"]), row["name"]


def test_the_page_is_that_of_the_data(tmp_path):
    page = tmp_path / "published.md"
    page.write_text(published.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    for region, table in (("vtab", published.vtab_table()), ("glue", published.glue_table())):
        assert fill(page, table, region) == page.read_text(encoding="utf-8"), "run python docs/make/published.py"


def test_the_example_above_the_tables_is_that_of_the_data():
    means = VTAB["LoRA, NOAH's runs"]["means"]
    text = " ".join(published.PAGE.read_text(encoding="utf-8").split())
    assert f"give {means['19']:.2f}, {means['groups']:.2f} and {means['12']:.2f}" in text


def test_the_data_name_the_tasks_of_vtab():
    """In an order that gives FacT's row as it is copied elsewhere."""
    from capaboost_vision.vtab.tasks import GROUPS

    table = json.loads((published.PAPER / "published-vtab.json").read_text(encoding="utf-8"))
    assert sorted(table["tasks"]) == sorted(task for group in GROUPS.values() for task in group)
    assert VTAB["FacT-TK"]["scores"] == dict(zip(ORDER.split(), map(float, FACT.split()), strict=True))


def _numbers(scores):
    for score in scores:
        yield from (number for number in (score if isinstance(score, list) else [score]) if number is not None)


def _half_unit(number: str) -> float:
    return 0.5 * 10 ** -len(number.partition(".")[2])
