"""A data set of one's own is read whole from any format, or refused with file and line; settings that do not fit are
refused before anything is read.
"""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from capaboost.runs.settings import GlueRun
from capaboost.training.settings import build_run
from capaboost_core import UserError
from capaboost_text.encode import Example
from capaboost_text.glue.own_data import own_splits, own_task, read_own
from capaboost_text.glue.tasks import GlueDataSection
from tests import commands
from tests.text.tiny_encoder import save_encoder

DOCS = Path(__file__).parents[2] / "docs" / "text.md"
SETTINGS = dict(task="mine", train="train.tsv", test="train.tsv", texts="text", label="label", classes=["no", "yes"])


def section(folder=None, **changes) -> GlueDataSection:
    values = SETTINGS | ({"dir": str(folder)} if folder else {}) | changes
    return GlueDataSection.from_dict({name: value for name, value in values.items() if value is not None}, "data.")


FILES = {
    "a.tsv": 'label\ttext\tother\nno\tsays "so\tx\n\nyes\tb\tx\n',
    "a.csv": '\ufefflabel,text,other\r\nno,"says ""so",x\r\n\r\nyes,b,x\r\n',
    "a.jsonl": '\ufeff{"label": "no", "text": "says \\"so", "x": 1}\n\n{"text": "b", "label": "yes"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert read_own(section(tmp_path), name) == [Example('says "so', None, 0), Example("b", None, 1)]


def test_a_csv_cell_may_hold_commas_and_line_feeds(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one,\ntwo",no\nthree,maybe\n')
    with pytest.raises(UserError, match=r"a\.csv, line 4: the label is 'maybe'"):
        read_own(section(tmp_path), "a.csv")
    (tmp_path / "a.csv").write_text('text,label\n"one,\ntwo",no\nthree,yes\n')
    assert [row.text for row in read_own(section(tmp_path), "a.csv")] == ["one,\ntwo", "three"]


def test_a_csv_cell_may_be_of_any_length(tmp_path):
    """Python's reader stops at 131,072 characters."""
    limit = csv.field_size_limit()
    for long in ("a" * 131_073, '"' + "b, " * 300_000 + '"'):
        (tmp_path / "a.csv").write_text(f"text,label\n{long},no\nc,yes\n")
        assert [len(row.text) for row in read_own(section(tmp_path), "a.csv")] == [len(long.strip('"')), 1]
    (tmp_path / "a.csv").write_text('text,label\n"never closed,no\n')
    with pytest.raises(UserError, match=r"a\.csv, line 2: .*quote cells as CSV wants"):
        read_own(section(tmp_path), "a.csv")
    assert csv.field_size_limit() == limit


LABELS = [
    (2, '1\n"0"', [1, 0]),
    (["1", "2"], "2\n1", [1, 0]),
    (["false", "true"], "true\nfalse", [1, 0]),
    (None, '-2.5\n"1e3"', [-2.5, 1000.0]),
]


@pytest.mark.parametrize(("classes", "values", "expected"), LABELS)
def test_names_indices_and_numbers(tmp_path, classes, values, expected):
    lines = [f'{{"a": "x", "b": "y", "label": {value}}}' for value in values.split("\n")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = read_own(section(tmp_path, texts=["b", "a"], classes=classes), "a.jsonl")
    assert rows == [Example("y", "x", label) for label in expected]
    assert [type(row.label) for row in rows] == [type(label) for label in expected]


def test_splits_from_the_hub(local_hub):
    rows = [{"title": f"t{i}", "body": f"b{i}", "class": i % 2} for i in range(6)]
    local_hub("mine/reviews", "small", "train", rows)
    data = section(hub="mine/reviews", subset="small", train="train[:4]", test="train[4:]", texts=["title", "body"],
        label="class", classes=2)  # fmt: skip
    parts = own_splits(data)
    assert parts.test == [Example("t4", "b4", 0), Example("t5", "b5", 1)]
    assert (len(parts.train), parts.selection) == (4, None)
    with pytest.raises(UserError, match=r"mine/reviews small has no column 'stars' but 'title, body, class'"):
        own_splits(data.replace(label="stars"))
    local_hub("mine/odd", "small", "train", [row | {"title": None} for row in rows])
    with pytest.raises(UserError, match=r"mine/odd small \(train\[:4\]\), row 0: title is None and not text"):
        own_splits(data.replace(hub="mine/odd"))


GOOD = "text\tlabel\na\tno\nb\tyes\n"
WRONG_ROWS = {
    "no file": ("b.tsv", None, r"cannot read .*b\.tsv: No such file"),
    "an ending": ("b.txt", GOOD, r"b\.txt has none of the endings \.tsv, \.csv, \.jsonl"),
    "no header": ("b.tsv", "", r"b\.tsv is empty"),
    "no rows": ("b.tsv", "text\tlabel\n", r"b\.tsv holds no rows below its header; add some"),
    "no lines": ("b.jsonl", "\n", r"b\.jsonl holds no rows"),
    "a column": ("b.tsv", "txt\tlabel\na\tno\n", r"b\.tsv, line 1: the header has no column 'text' but 'txt, label'"),
    "a column twice": ("b.csv", "text,text,label\na,b,no\n", r"b\.csv, line 1: the header has 'text' more than once"),
    "a name": ("b.jsonl", '{"text": "a", "labl": "no"}', r"b\.jsonl, line 1 has no 'label' but 'text, labl'"),
    "a ragged row": ("b.tsv", GOOD + "c\n", r"b\.tsv, line 4 has 1 columns where 2 belong"),
    "a ragged CSV row": ("b.csv", "text,label\na,b,no\n", r"b\.csv, line 2 has 3 columns where 2 belong"),
    "an open quote": ("b.csv", 'text,label\na,no\n"b,yes\n', r"b\.csv, line 3: unexpected end of data"),
    "no JSON": ("b.jsonl", '{"text": "a", "label": "no"}\n{"text"', r"b\.jsonl, line 2 is not JSON"),
    "no object": ("b.jsonl", "[1]", r"b\.jsonl, line 1 is no object"),
    "no UTF-8": ("b.tsv", b"text\tlabel\n\xff\tno\n", r"b\.tsv is not UTF-8"),
    "a label": (
        "b.tsv",
        GOOD + "c\tmaybe\n",
        r"b\.tsv, line 4: the label is 'maybe', but data\.classes has",
    ),
    "an empty text": ("b.tsv", GOOD + " \tno\n", r"b\.tsv, line 4: text is empty"),
    "no text": ("b.jsonl", '{"text": null, "label": "no"}', r"b\.jsonl, line 1: text is None and not text"),
}


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("case", WRONG_ROWS)
def test_what_is_wrong_in_a_file_is_one_line_with_file_and_line(tmp_path, case):
    name, content, message = WRONG_ROWS[case]
    (tmp_path / "train.tsv").write_text(GOOD)
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        own_splits(section(tmp_path, test=name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["x", "nan", "inf", "1_0", ""])
def test_what_is_no_number(tmp_path, value):
    (tmp_path / "train.tsv").write_text(f"text\tlabel\na\t1\nb\t{value}\n")
    with pytest.raises(UserError, match=r"train\.tsv, line 3: the label is .* and not a number"):
        own_splits(section(tmp_path, classes=None))


def test_rows_of_one_class_only(tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tno\nb\tno\n")
    with pytest.raises(UserError, match="mine has training rows of one class only"):
        own_splits(section(tmp_path))


WRONG_SETTINGS = [
    ({"task": "colla", **dict.fromkeys([*SETTINGS][1:])}, "did you mean cola"),
    ({"task": "cola"}, r"data\.train is 'train\.tsv'; cola is a task of GLUE"),
    ({"task": "cola", "protocol": "select", **dict.fromkeys([*SETTINGS][1:])}, "for cola type propetl or adalora"),
    ({"train": None}, r"data\.train is null; your own data mine need it"),
    ({"label": None}, r"data\.label is null"),
    ({"texts": ["a", "b", "c"]}, r"data\.texts is .*; type one column or two"),
    ({"texts": ["a", "a"]}, r"data\.texts is .*; type one column or two"),
    ({"texts": ["label"]}, r"data\.texts is .*other than the label's"),
    ({"classes": 1}, r"data\.classes is 1; type two or more"),
    ({"classes": ["a", "a"]}, r"data\.classes is .*; type two or more different names"),
    ({"classes": True}, r"data\.classes is true; type a whole number"),
    (
        {"classes": 3, "metrics": "f1"},
        r"data\.metrics is 'f1'; of 3 classes type one or several of: accuracy, mat",
    ),
    ({"classes": None, "metrics": "accuracy"}, r"of a number type one or several of: pearson"),
    ({"metrics": ["accuracy", "acuracy"]}, r"of 2 classes type one or several of: accuracy, f1, matthews"),
    ({"protocol": "adalora"}, r"data\.protocol is 'adalora'; that is one of GLUE's"),
    ({"protocol": "select"}, r"data\.protocol is 'select'; give a selection split"),
    ({"hub": "a/b", "dir": "c"}, r"data\.dir is 'c'; data of the hub have none"),
    ({"subset": "a"}, r"data\.subset is 'a'; only data of the hub have one"),
    ({"trian": "a"}, r"unknown setting data\.trian; did you mean data\.train\?"),
]


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(("changes", "message"), WRONG_SETTINGS)
def test_settings_that_do_not_fit_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        section(**changes)
    assert "\n" not in str(caught.value)


def test_defaults_follow_from_the_data():
    assert own_task(section()).metrics == ("accuracy",)
    assert own_task(section(classes=None)).metrics == ("pearson_spearman", "pearson", "spearman")
    for changes, selects in (
        ({}, False),
        ({"selection": "a.csv"}, True),
        ({"selection": "a", "protocol": "test"}, False),
    ):
        run = build_run(GlueRun, {"model": {"name": "x"}, "data": section(**changes).to_dict()})
        assert (run.data.protocol == run.selecting) == selects


def test_the_example_of_the_docs_runs(tmp_path):
    """As it stands, but for the model, fewer epochs and a shorter text."""
    (example,) = re.findall(r"## Your own data.*?```yaml\n(.*?)```", DOCS.read_text(), re.S)
    settings = yaml.safe_load(example)
    (tmp_path / "reviews.yaml").write_text(example)
    folder = tmp_path / settings["data"]["dir"]
    folder.mkdir(parents=True)
    for name, count in (("train.csv", 24), ("dev.csv", 6), ("test.csv", 7)):
        rows = [f'"Duke, {i}",the William {i},{("bad", "good")[i % 2]}' for i in range(count)]
        (folder / name).write_text("\n".join(["title,review,stars", *rows]))
    save_encoder(tmp_path / "encoder")
    flags = ["--config", str(tmp_path / "reviews.yaml"), "--data-dir", str(folder), "--epochs", "1", "--model"]
    output = commands.finish(commands.start("tools/train_glue.py", *flags, str(tmp_path / "encoder"), "--set",
        "data.max_length=32", "--output-dir", str(tmp_path / "run")))  # fmt: skip
    assert "result.json" in output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["task"], result["metric"], result["selected_by"]) == ("reviews", "f1", "selection_f1")
    assert result["test_metrics"].keys() == {"f1", "accuracy"}
    assert result["split_note"] == "trained on train.csv, dev.csv selects the epoch, tested on test.csv"
