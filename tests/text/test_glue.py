"""GLUE is read whole or refused with file and line, split as the paper does, and scored by the textbook."""

import warnings

import numpy as np
import pytest
import torch

from capaboost_core.errors import UserError
from capaboost_text.encode import Example
from capaboost_text.glue.data import PROTOCOLS, load_split, splits
from capaboost_text.glue.tasks import METRICS, TASKS, compute_metrics, find_task
from tests.real_data import real_data
from tests.text.glue_files import row_of, write, write_all

SMALL = {"cola", "rte", "mrpc", "stsb"}


def ids(examples):
    return [int(example.text.removeprefix('a "')) for example in examples]


@pytest.mark.parametrize("task", TASKS)
def test_reads_every_task(tmp_path, task):
    found = TASKS[task]
    count = max(6, len(found.labels))
    write(tmp_path, task, "train", [row_of(task, i) for i in range(count)])
    examples = load_split(task, tmp_path, "train")
    assert ids(examples) == list(range(count))
    assert [e.pair for e in examples] == [f"b {i}" if len(found.texts) == 2 else None for i in range(count)]
    assert [e.label for e in examples] == [i % (len(found.labels) or 6) for i in range(count)]
    assert all(isinstance(e.label, float if found.regression else int) for e in examples)


def test_odd_but_good_files(tmp_path):
    """A byte order mark, CRLF, an empty last line, and characters that Python alone takes for line ends."""
    path = write(tmp_path, "sst2", "train", ['"one\x85 \u2028two\t1', "\t0", ""], end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_split("sst2", tmp_path, "train") == [Example('"one\x85 \u2028two', None, 1), Example("", None, 0)]


@pytest.mark.parametrize("task", TASKS)
def test_propetl(tmp_path, task):
    write_all(tmp_path, task)
    parts = splits(task, "propetl", tmp_path)
    order = torch.randperm(21 if task in SMALL else 1200, generator=torch.Generator().manual_seed(42)).tolist()
    if task in SMALL:
        assert ids(parts.selection) == [10_000 + i for i in order[:10]]
        assert ids(parts.test) == [10_000 + i for i in order[10:]]
        assert sorted(ids(parts.train)) == list(range(1200))
    else:
        assert ids(parts.selection) == order[:1000]
        assert ids(parts.train) == order[1000:]
        assert ids(parts.test) == [10_000 + i for i in range(21)]
    assert not {*ids(parts.selection)} & {*ids(parts.train), *ids(parts.test)}
    assert splits(task, "propetl", tmp_path) == parts
    assert (parts.mismatched is None) == (task != "mnli")


@pytest.mark.parametrize("task", TASKS)
def test_adalora(tmp_path, task):
    write_all(tmp_path, task, train=30)
    parts = splits(task, "adalora", tmp_path)
    assert parts.selection is None
    assert ids(parts.test) == [10_000 + i for i in range(21)]
    assert sorted(ids(parts.train)) == list(range(30))
    if task == "mnli":
        assert ids(parts.mismatched) == [20_000 + i for i in range(21)]


def test_permutation_never_changes():
    """Known values: a torch that draws otherwise would silently give other halves."""
    order = torch.randperm(277, generator=torch.Generator().manual_seed(42)).tolist()
    assert order[:6] == [207, 84, 253, 243, 190, 28]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("task", ["rte", "sst2"])
def test_fixed_slice_of_the_training_rows(tmp_path, task, protocol):
    write_all(tmp_path, task)
    whole, part = (splits(task, protocol, tmp_path, rows) for rows in (None, 50))
    assert part.train == whole.train[:50]
    assert ids(part.train) != sorted(ids(part.train))
    assert (part.selection, part.test) == (whole.selection, whole.test)
    assert splits(task, protocol, tmp_path, 10**6) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("SST-2", "propetl"), "did you mean sst2"),
        (("wordnet", "propetl"), "type one of: cola, sst2, mrpc"),
        ((3, "propetl"), "unknown task 3"),
        (("cola", "prpetl"), "protocol is 'prpetl'; type one of: propetl, adalora"),
        (("cola", "propetl", None, 0), "max_train_rows is 0"),
        (("cola", "propetl", None, "many"), "max_train_rows is 'many'"),
    ],
)
def test_unknown_settings(arguments, message):
    with pytest.raises(UserError, match=message):
        splits(*arguments)


def test_unknown_split(tmp_path):
    with pytest.raises(UserError, match="type one of: train, dev_matched, dev_mismatched"):
        load_split("mnli", tmp_path, "dev")
    with pytest.raises(UserError, match="split of rte is 'test'"):
        load_split("rte", tmp_path, "test")


def test_missing_folders_and_files(tmp_path):
    data = tmp_path / "glue"
    for missing in (data, data / "RTE", data / "RTE" / "train.tsv"):
        with pytest.raises(UserError) as caught:
            load_split("rte", data, "train")
        assert str(caught.value).startswith(f"{missing} does not exist; put the original GLUE data in {data / 'RTE'}")
        missing.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*train\.tsv"):  # a folder of that name
        load_split("rte", data, "train")


BAD_ROWS = [
    ("cola", "gj04\t1\t\t", 2, None),
    ("cola", "gj04\t1\tno mark", 2, "has 3 columns where 4 belong"),
    ("cola", "gj04\t1\t\ta\tb", 2, "has 5 columns where 4 belong"),
    ("cola", "gj04\t2\t\ttext", 2, "the label is '2', but must be one of 0, 1"),
    ("sst2", "only a text", 3, "has 1 columns where 2 belong"),
    ("sst2", "text\tpositive", 3, "the label is 'positive', but must be one of 0, 1"),
    ("sst2", "text\t", 3, "the label is ''"),
    ("rte", "1\ta\tb\tneutral", 3, "the label is 'neutral', but must be one of entailment, not_entailment"),
    ("mnli", "\t".join("01234567ab") + "\tx\t-", 3, "the label is '-'"),
    ("qqp", "0\t1\t2\ta\tb\t1\tmore", 3, "has 7 columns where 6 belong"),
    ("stsb", "\t".join("0123456ab") + "\tmuch", 3, "the score is 'much', but must be a number from 0 to 5"),
    ("stsb", "\t".join("0123456ab") + "\tnan", 3, "the score is 'nan'"),
    ("stsb", "\t".join("0123456ab") + "\t5.1", 3, "the score is '5.1'"),
    ("stsb", "\t".join("0123456ab") + "\t0_1", 3, "the score is '0_1'"),
    ("stsb", "\t".join("0123456ab") + "\t\u0663", 3, "the score is '\u0663'"),
    ("stsb", "\t".join("0123456ab") + "\t" + "9" * 5000, 3, "the score is '999"),
    ("rte", "1\ta\tb\tneu\u2028tral" + "l" * 10_000, 3, "the label is 'neu\\u2028trallll"),
]


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(("task", "row", "line", "message"), BAD_ROWS)
def test_bad_rows_name_file_and_line(tmp_path, task, row, line, message):
    path = write(tmp_path, task, "train", [row_of(task, 0), row, row_of(task, 1)])
    if message is None:  # an empty text is none of our business
        assert len(load_split(task, tmp_path, "train")) == 3
        return
    with pytest.raises(UserError) as caught:
        load_split(task, tmp_path, "train")
    text = str(caught.value)
    assert text.startswith(f"{path}, line {line}")
    assert message in text
    assert text.endswith("correct it, or fetch the file again")
    assert len(text.splitlines()) == 1
    assert len(text) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"sentence\tlabel\n", "holds no rows"),
        (b"sentence\tgrade\na\t1\n", "line 1: the header has no column 'label' but 'sentence, grade'"),
        (b"a text\t1\n", "the header has no column 'sentence'"),
        (b"sentence\tlabel\n\xff\t1\n", "is not UTF-8"),
    ],
)
def test_bad_files(tmp_path, content, message):
    write(tmp_path, "sst2", "train", []).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_split("sst2", tmp_path, "train")


def test_empty_cola_has_no_header_to_miss(tmp_path):
    write(tmp_path, "cola", "train", [])
    with pytest.raises(UserError, match="holds no rows"):
        load_split("cola", tmp_path, "train")


def test_qqp_may_have_a_few_broken_rows(tmp_path):
    """As the original file does, where a question holds a line break."""
    good, broken = [row_of("qqp", i) for i in range(2)], ["1\t2\t3\tWhat is", '"\tthis?\t0']
    path = write(tmp_path, "qqp", "train", [good[0], *broken, good[1]])
    with pytest.warns(UserWarning, match=r"left out 2 broken rows, the first in line 3") as caught:
        assert ids(load_split("qqp", tmp_path, "train")) == [0, 1]
    assert str(path) in str(caught[0].message)
    write(tmp_path, "qqp", "train", [good[0], *broken * 26])
    with pytest.raises(UserError, match="line 53 has 4 columns where 6 belong"):
        load_split("qqp", tmp_path, "train")


def test_too_few_rows_for_the_protocol(tmp_path):
    write_all(tmp_path, "sst2", train=1000)
    with pytest.raises(UserError, match="sst2 has 1000 training rows, but protocol propetl needs 1001"):
        splits("sst2", "propetl", tmp_path)
    write_all(tmp_path, "rte", train=3, dev=1)
    with pytest.raises(UserError, match="rte has 1 dev rows"):
        splits("rte", "propetl", tmp_path)


@pytest.mark.hard_case(32)
@pytest.mark.parametrize("task", TASKS)
def test_one_class_is_no_task(task, tmp_path):
    write_all(tmp_path, task)
    write(tmp_path, task, "train", [row_of(task, i, TASKS[task].tsv_labels[0]) for i in range(1200)] if task != "stsb"
          else [row_of(task, i, "3.0") for i in range(1200)])  # fmt: skip
    if task == "stsb":  # a score is not a class
        assert len(splits(task, "propetl", tmp_path).train) == 1200
        return
    with pytest.raises(UserError, match=f"{task} has training rows of one class only; give rows of two or more$"):
        splits(task, "propetl", tmp_path)
    write_all(tmp_path, task)
    with pytest.raises(UserError, match="one class only; give rows of two or more, or raise max_train_rows"):
        splits(task, "propetl", tmp_path, 1)


@pytest.mark.hard_case("messages")
def test_odd_paths(tmp_path):
    for folder in ("a" * 5000, "a\0b", tmp_path / "none"):
        with pytest.raises(UserError, match="or leave the folder out to load it from the hub"):
            load_split("rte", folder, "train")


def test_hub(local_hub):
    rows = [{"premise": "a", "hypothesis": "c", "label": 2}, {"premise": "b", "hypothesis": "d", "label": 0}]
    local_hub("nyu-mll/glue", "mnli", "validation_mismatched", rows)
    assert load_split("mnli", None, "dev_mismatched") == [Example("a", "c", 2), Example("b", "d", 0)]
    local_hub("nyu-mll/glue", "mnli", "train", [rows[0], rows[1] | {"label": -1}])
    with pytest.raises(UserError, match=r"nyu-mll/glue mnli \(train\), row 1: the label is -1"):
        load_split("mnli", None, "train")
    local_hub("nyu-mll/glue", "stsb", "validation", [{"sentence1": "a", "sentence2": "b", "label": 3.8}])
    assert load_split("stsb", None, "dev") == [Example("a", "b", 3.8)]
    local_hub("nyu-mll/glue", "rte", "validation", [{"sentence1": "a", "label": 1}])
    with pytest.raises(UserError, match="nyu-mll/glue rte has no column sentence2; set --data-dir"):
        load_split("rte", None, "dev")
    local_hub("nyu-mll/glue", "rte", "train", [{"sentence1": "a", "sentence2": None, "label": 1}])
    with pytest.raises(UserError, match=r"nyu-mll/glue rte \(train\), row 0: None is not a string; set --data-dir"):
        load_split("rte", None, "train")


def test_hub_out_of_reach(local_hub):
    with pytest.raises(UserError, match=r"^cannot load nyu-mll/glue cola from the hub \(.*\); set --data-dir[^\n]*$"):
        load_split("cola", None, "dev")


@pytest.mark.parametrize(("task", "train", "dev"), [("cola", 8551, 1043), ("sst2", 67349, 872), ("rte", 2490, 277)])
def test_real_files_have_the_published_sizes(task, train, dev):
    glue, folder = real_data("glue"), real_data("glue", TASKS[task].folder)
    parts = splits(task, "adalora", glue)
    assert (len(parts.train), len(parts.test)) == (train, dev)
    for examples, name in ((parts.train, "train"), (parts.test, "dev")):
        raw = (folder / f"{name}.tsv").read_text(encoding="utf-8")
        texts = [text for example in examples for text in example[:2] if text]
        assert sum(text.count('"') for text in texts) == raw.count('"')
    halved = splits(task, "propetl", glue)
    assert len(halved.selection) == (dev // 2 if task in SMALL else 1000)
    assert len(halved.train) == (train if task in SMALL else train - 1000)
    assert len(halved.test) == (dev - dev // 2 if task in SMALL else dev)
    if task == "cola":
        assert parts.test[0] == Example("The sailors rode the breeze clear of the rocks.", None, 1)


RNG = np.random.default_rng(0)
CLASSES = [RNG.integers(0, 2, size=(2, n)) for n in (7, 40, 500)]
SCORES = [np.round(RNG.normal(size=(2, n)), 1) for n in (5, 40, 500)]  # rounded, so that ranks tie


@pytest.mark.parametrize(("predicted", "true"), CLASSES)
def test_class_metrics(predicted, true):
    tp, tn = sum((predicted == 1) & (true == 1)), sum((predicted == 0) & (true == 0))
    fp, fn = sum((predicted == 1) & (true == 0)), sum((predicted == 0) & (true == 1))
    expected = {
        "accuracy": 100 * (tp + tn) / len(true),
        "f1": 100 * 2 * tp / (2 * tp + fp + fn),
        "matthews": 100 * (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }
    assert compute_metrics(expected, predicted, true) == pytest.approx(expected)
    assert compute_metrics(expected, predicted.tolist(), true.tolist()) == pytest.approx(expected)


def correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    return 100 * (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())


def ranks(x):
    """Mean rank of ties: how many are smaller, and half of how many are equal."""
    return np.array([(x < value).sum() + ((x == value).sum() + 1) / 2 for value in x])


@pytest.mark.parametrize(("predicted", "true"), SCORES)
def test_correlations(predicted, true):
    expected = {"pearson": correlation(predicted, true), "spearman": correlation(ranks(predicted), ranks(true))}
    expected["pearson_spearman"] = sum(expected.values()) / 2
    assert compute_metrics(expected, predicted, true) == pytest.approx(expected)
    assert TASKS["stsb"].score(predicted, true) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [([0, 0, 0], [0, 1, 1]), ([1, 1, 1], [0, 1, 0]), ([0, 1, 0], [1, 1, 1]), ([0, 0], [0, 0]), ([1, 1], [1, 1])],
)
def test_constants_score_nothing(predicted, true):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = compute_metrics(METRICS, predicted, true)
        for name in ("matthews", "pearson", "spearman", "pearson_spearman"):
            assert scores[name] == 0
        assert all(np.isfinite(list(scores.values())))
        assert scores["f1"] == 0 or 1 in predicted
        assert compute_metrics(["pearson_spearman"], [0.1, 0.1, 0.1], [1.0, 2.0, 3.0]) == {"pearson_spearman": 0}
        assert compute_metrics(["pearson_spearman"], [0.1, np.nan, 0.3], [1.0, 2.0, 3.0]) == {"pearson_spearman": 0}
        near = 3.0 + np.array([0, 1, 2]) * 1e-15
        assert compute_metrics(["pearson_spearman"], near, [1.0, 2.0, 3.0]) == {"pearson_spearman": 0}
        assert compute_metrics(["spearman"], [0.1, np.inf, 0.3], [1.0, 2.0, 3.0]) == {"spearman": 0}


def test_a_nearly_collapsed_regression_still_counts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = np.array([3.0, 3.0 + 2**-20, 3.0 + 2**-19], dtype=np.float32)
        assert compute_metrics(["pearson"], scores, [1.0, 2.0, 3.0]) == pytest.approx({"pearson": 100.0})


@pytest.mark.parametrize(("predicted", "true"), [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_misshapen_predictions(predicted, true):
    with pytest.raises(ValueError, match="one value a row"):
        compute_metrics(["accuracy"], predicted, true)


def test_the_metric_that_decides():
    primary = {name: task.primary for name, task in TASKS.items()}
    special = {"cola": "matthews", "stsb": "pearson_spearman"}
    assert primary == dict.fromkeys(TASKS, "accuracy") | special
    assert TASKS["mrpc"].metrics == TASKS["qqp"].metrics == ("accuracy", "f1")
    assert find_task("mnli") is TASKS["mnli"]
    assert list(TASKS["mnli"].score([0, 1, 2], [0, 1, 1])) == ["accuracy"]
