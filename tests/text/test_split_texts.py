"""Rows that tools/split_texts.py draws: none in two parts, dev to test on, and read back as they were."""

import json
from pathlib import Path

import pytest

from capaboost.runs.trainings import TRAININGS
from capaboost_core import UserError
from capaboost_text.glue.data import load_split
from capaboost_text.glue.own_data import own_splits
from tools.split_texts import as_tsv, main, split

COUNTS = {"train": 6, "selection": 4, "test": 5}
TRICKY = ['say "yes"', "a, b", "'", "ends in a space ", '"', "tabs are not in it"]


@pytest.fixture
def glue(tmp_path) -> Path:
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for part, count in (("train", 20), ("dev", 5)):
        rows = (f"{TRICKY[i % 6]} {part} {i}\t{i % 2}" for i in range(count))
        (folder / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return tmp_path / "glue"


def test_parts_are_disjoint_and_dev_is_tested_on(glue):
    parts = split(glue, "sst2", COUNTS)
    texts = [row.text for rows in parts.values() for row in rows]
    assert len(texts) == len({*texts}) == sum(COUNTS.values()) + 5
    assert {name: len(rows) for name, rows in parts.items()} == COUNTS | {"test": 10}
    assert set(parts["test"]) > set(load_split("sst2", glue, "dev"))
    assert split(glue, "sst2", COUNTS) == parts


def test_a_run_on_data_of_ones_own_reads_what_was_written(glue, tmp_path):
    parts = split(glue, "sst2", COUNTS)
    for name, rows in parts.items():
        (tmp_path / f"{name}.tsv").write_text(as_tsv(rows))
    files = {name: f"{name}.tsv" for name in COUNTS}
    columns = {"texts": "sentence", "label": "label", "classes": 2}
    flags = {"data": {"task": "few", "dir": str(tmp_path), "protocol": "test", **columns, **files}}
    run = TRAININGS["train-glue"].load(flags, "lora")  # by the recipe for texts of one's own, as in a sweep
    read = own_splits(run.data)
    assert (read.train, read.selection, read.test) == tuple(parts[name] for name in COUNTS)


def test_more_rows_than_there_are_is_one_line(glue):
    with pytest.raises(UserError, match="sst2 has 20 rows to draw"):
        split(glue, "sst2", COUNTS | {"test": 11})


def test_questions_by_article(tmp_path, capsys):
    def article(number: int) -> dict:
        return {"paragraphs": [{"qas": [{"question": f"what\t is {number}, {i}?"} for i in range(4)]}]}

    (tmp_path / "dev-v1.1.json").write_text(json.dumps({"data": [article(number) for number in range(20)]}))
    counts = {"train": 30, "selection": 10, "test": 24}
    parts = split(tmp_path, "articles", counts)
    assert {name: len(rows) for name, rows in parts.items()} == counts
    drawn = [row for rows in parts.values() for row in rows]
    assert {row.text: row.label for row in drawn} == {f"what is {n}, {i}?": n for n in range(16) for i in range(4)}
    assert main([str(tmp_path / "nowhere"), "articles", str(tmp_path / "out")]) == 2
    assert "give the folder of SQuAD's files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_of_no_task_without_files_is_refused_as_one(glue):
    with pytest.raises(UserError, match="unknown task 'sst3'; did you mean sst2"):
        TRAININGS["train-glue"].load({"data": {"task": "sst3"}}, "lora")
