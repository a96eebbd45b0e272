"""GLUE and SQuAD files of any content are read right, or refused in one line that names the place."""

from __future__ import annotations

import json
import shutil

from hypothesis import given
from hypothesis import strategies as st

from capaboost_text.glue.data import PROTOCOLS, load_split, splits
from capaboost_text.glue.tasks import TASKS
from capaboost_text.squad.data import read_squad
from tests.hard.oracle import attempt, refused, scratch
from tests.hard.values import damaged, mutated
from tests.text.glue_files import row_of, write, write_all
from tests.text.squad_case import GOOD

TASK = st.sampled_from(sorted(TASKS))
CELLS = st.sampled_from(
    ["", " ", "0", "1", "2", "-1", "5.1", "nan", "1e400", "inf", "entailment", "٣", "\ufeff", '"', "\r"]
)


def check_examples(task: str, examples: list) -> None:
    classes = len(TASKS[task].labels)
    for example in examples:
        assert isinstance(example.text, str)
        assert isinstance(example.pair, str) == (len(TASKS[task].texts) == 2)
        assert 0 <= example.label < classes if classes else 0 <= example.label <= 5


@given(data=st.data(), task=TASK)
def test_a_damaged_tsv_file(data, task):
    with scratch() as folder:
        path = write(folder, task, "train", [row_of(task, i) for i in range(5)])
        content = path.read_bytes()
        path.write_bytes(data.draw(damaged(content)))
        got = attempt(lambda: load_split(task, folder, "train"), folder)
        if not refused(got):
            check_examples(task, got)


@given(data=st.data(), task=TASK)
def test_rows_of_any_cells(data, task):
    rows = [row_of(task, i).split("\t") for i in range(4)]
    row = data.draw(st.sampled_from(rows))
    for _ in range(data.draw(st.integers(1, 3))):
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(CELLS | st.text(max_size=6))
    with scratch() as folder:
        write(folder, task, "train", ["\t".join(cells) for cells in rows])
        got = attempt(lambda: load_split(task, folder, "train"), folder)
        if not refused(got):
            check_examples(task, got)


FAULTS = ("none", "no folder", "no file", "a folder for a file", "empty", "header only", "another task's", "bytes")


@given(task=TASK, protocol=st.sampled_from(PROTOCOLS), fault=st.sampled_from(FAULTS), dev=st.integers(0, 5),
       most=st.sampled_from([None, 0, -1, 1, 7, 10**9, 1.5, "3", True]))  # fmt: skip
def test_a_folder_with_a_fault(task, protocol, fault, dev, most):
    with scratch() as folder:
        write_all(folder, task, train=1010, dev=dev)
        path = folder / TASKS[task].folder / "train.tsv"
        if fault == "no folder":
            shutil.rmtree(path.parent)
        elif fault != "none":
            lines = path.read_text().split("\n")
            path.unlink()
        if fault == "a folder for a file":
            path.mkdir()
        elif fault in ("empty", "header only", "bytes"):
            path.write_bytes({"empty": b"", "header only": lines[0].encode(), "bytes": b"\xff\xfe\0\0"}[fault])
        elif fault == "another task's":
            write(folder, "rte" if task != "rte" else "cola", "train", [])
        got = attempt(lambda: splits(task, protocol, folder, most), folder)
        if not refused(got):
            assert fault == "none" or (fault == "header only" and task == "cola")  # whose files have no header
            check_examples(task, got.train + got.test + (got.selection or []))
            assert got.train
            assert got.test
            assert not set(map(id, got.train)) & set(map(id, got.selection or []))


def read(content: bytes, dataset: str):
    """Questions whose answers are where they say, or a refusal."""
    with scratch() as folder:
        path = folder / "dev.json"
        path.write_bytes(content)
        got = attempt(lambda: read_squad(path, dataset), folder)
    if not refused(got):
        assert len({question.id for question in got}) == len(got) > 0
        for question in got:
            assert question.impossible != bool(question.answers)
            for text, start in question.answers:
                assert question.context[start : start + len(text)] == text != ""
    return got


@given(content=mutated(GOOD, most=3), dataset=st.sampled_from(["squad_v1", "squad_v2"]))
def test_a_squad_file_with_anything_anywhere(content, dataset):
    read(json.dumps(content).encode(), dataset)


@given(content=damaged(json.dumps(GOOD).encode()), bom=st.booleans())
def test_a_damaged_squad_file(content, bom):
    read(b"\xef\xbb\xbf" * bom + content, "squad_v2")
