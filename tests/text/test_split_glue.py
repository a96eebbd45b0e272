"""Rows that tools/split_glue.py draws: none in two parts, dev to test on, and read back as they were."""

from pathlib import Path

import pytest

from capaboost.runs.trainings import TRAININGS
from capaboost_core import UserError
from capaboost_text.glue.data import load_split
from capaboost_text.glue.own_data import own_splits
from tools.split_glue import as_tsv, split

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
    with pytest.raises(UserError, match="sst2 has 20 training rows"):
        split(glue, "sst2", COUNTS | {"test": 11})


def test_a_name_of_no_task_without_files_is_refused_as_one(glue):
    with pytest.raises(UserError, match="unknown task 'sst3'; did you mean sst2"):
        TRAININGS["train-glue"].load({"data": {"task": "sst3"}}, "lora")
