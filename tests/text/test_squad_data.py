"""SQuAD files are read whole or refused with the place of the fault."""

import copy
import json

import pytest

from capaboost_core.errors import UserError
from capaboost_text.squad.data import find_file, load_squad, read_squad
from tests.text.squad_case import GOOD, squad

DELETE = object()
PARAGRAPH = ("data", 1, "paragraphs", 0)
QUESTION = (*PARAGRAPH, "qas", 0)
ANSWER = (*QUESTION, "answers", 0)


def changed(path, value):
    content = copy.deepcopy(GOOD)
    part = content
    for key in path[:-1]:
        part = part[key]
    if value is DELETE:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return content


def write(folder, content, name="dev-v2.0.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_reads_a_good_file(tmp_path):
    first, second = read_squad(write(tmp_path, GOOD), "squad_v2")
    assert (first.id, first.question, first.context) == ("1", "Who?", "William won in 1066.")
    assert first.answers == (("William", 0),)
    assert (first.impossible, second.impossible, second.answers) == (False, True, ())
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_squad(marked, "squad_v2") == [first, second]
    without = changed((*QUESTION, "is_impossible"), DELETE)
    assert read_squad(write(tmp_path, without), "squad_v2") == [first, second]


BAD = [
    (("data",), DELETE, "data is missing; it must be a list"),
    (("data",), {}, "data is a dict; it must be a list"),
    (("data",), [], "holds no questions"),
    (("data", 1), 7, "article 1 is a int"),
    (("data", 1, "paragraphs"), None, "article 1: paragraphs is a NoneType"),
    (PARAGRAPH, [], "article 1, paragraph 0 is a list"),
    ((*PARAGRAPH, "context"), DELETE, "article 1, paragraph 0: context is missing"),
    ((*PARAGRAPH, "context"), " \n", "context is empty"),
    ((*PARAGRAPH, "qas"), DELETE, "article 1, paragraph 0: qas is missing"),
    (QUESTION, "Who?", "article 1, paragraph 0, question 0 is a str"),
    ((*QUESTION, "id"), DELETE, "question 0: id is missing"),
    ((*QUESTION, "id"), 3, "question 0: id is a int; it must be text"),
    ((*QUESTION, "id"), "2", "the id '2' occurs twice"),
    ((*QUESTION, "question"), DELETE, "question 0: question is missing"),
    ((*QUESTION, "question"), "\ud800?", "half a surrogate pair"),
    ((*QUESTION, "answers"), DELETE, "question 0: answers is missing"),
    ((*QUESTION, "answers"), [], "is_impossible is false, but there are 0 answers"),
    ((*QUESTION, "is_impossible"), True, "is_impossible is true, but there are 1 answers"),
    ((*QUESTION, "is_impossible"), "no", "is_impossible is 'no'"),
    (ANSWER, "William", "question 0, answer 0 is a str"),
    ((*ANSWER, "text"), DELETE, "answer 0: text is missing"),
    ((*ANSWER, "text"), "", "answer 0: text is empty"),
    ((*ANSWER, "text"), "Harold", "the context has 'Willia' at 0, not the answer 'Harold'"),
    ((*ANSWER, "answer_start"), DELETE, "answer_start is None"),
    ((*ANSWER, "answer_start"), 1, "the context has 'illiam ' at 1"),
    ((*ANSWER, "answer_start"), 999, "the context has '' at 999"),
    ((*ANSWER, "answer_start"), -20, "answer_start is -20"),
    ((*ANSWER, "answer_start"), True, "answer_start is True"),
    ((*ANSWER, "answer_start"), 0.0, "answer_start is 0.0"),
    ((*ANSWER, "answer_start"), 10**4000, "the context has '' at 1000"),
    ((*ANSWER, "answer_start"), ["a" * 10_000], "answer_start is ['aaa"),
    ((*ANSWER, "text"), "a" * 10_000, "not the answer 'aaa"),
    ((*QUESTION, "is_impossible"), "a" * 10_000, "is_impossible is 'aaa"),
]


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_entries_name_their_place(tmp_path, path, value, message):
    file = write(tmp_path, changed(path, value))
    with pytest.raises(UserError) as caught:
        read_squad(file, "squad_v2")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is a list"),
        ("[" * 100_000, "is not JSON"),
        ("nul", "JSON"),
        ("9" * 5000, "is not JSON: Exceeds the limit"),
        ("\ufeff\ufeff{}", "is not JSON"),
        ("\0", "is not JSON"),
    ],
)
def test_bad_files(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_squad(write(tmp_path, content), "squad_v2")


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_squad(tmp_path, "squad_v1")
    (tmp_path / "x.json").write_bytes(b"\xff{}")
    with pytest.raises(UserError, match="not UTF-8 at byte 0"):
        read_squad(tmp_path / "x.json", "squad_v1")


def test_versions_are_not_mixed_up(tmp_path):
    with pytest.raises(UserError, match="set dataset to squad_v2"):
        read_squad(write(tmp_path, GOOD), "squad_v1")
    with pytest.raises(UserError, match="set dataset to squad_v1"):
        read_squad(write(tmp_path, {"version": "1.1", "data": []}), "squad_v2")
    with pytest.raises(UserError, match="question 1 has no answer"):
        read_squad(write(tmp_path, changed(("version",), "mine")), "squad_v1")


def test_finds_the_file_of_a_split(tmp_path):
    for folder in (tmp_path, "a" * 5000, "a\0b"):
        with pytest.raises(UserError, match=r"dev-v1\.1\.json does not exist"):
            find_file("squad_v1", "dev", folder)
    part = write(tmp_path, "", "dev-v1.1-part.json")
    assert find_file("squad_v1", "dev", tmp_path) == part
    write(tmp_path, "", "dev-v1.1-rest.json")
    with pytest.raises(UserError, match=r"part\.json, dev-v1\.1-rest\.json; name the one"):
        find_file("squad_v1", "dev", tmp_path)
    official = write(tmp_path, "", "dev-v1.1.json")
    assert find_file("squad_v1", "dev", tmp_path) == official


@pytest.mark.parametrize(("dataset", "split"), [("squad", "dev"), ("squad_v1", "test")])
def test_unknown_names(tmp_path, dataset, split):
    with pytest.raises(UserError, match="type one of"):
        load_squad(dataset, split, tmp_path)


def test_hub_rows(local_hub):
    row = {"title": "t", "context": "William won.", "question": "Who?"}
    answered = {"id": "1", "answers": {"text": ["William"], "answer_start": [0]}}
    unanswered = {"id": "2", "answers": {"text": [], "answer_start": []}}
    local_hub("rajpurkar/squad_v2", None, "validation", [row | answered, row | unanswered])
    first, second = load_squad("squad_v2", "dev")
    assert (first.answers, first.impossible, second.impossible) == ((("William", 0),), False, True)
    local_hub("rajpurkar/squad", None, "train", [row | answered, row | unanswered])
    with pytest.raises(UserError, match=r"rajpurkar/squad \(train\), row 1 has no answer"):
        load_squad("squad_v1", "train")
    answered["answers"]["text"] = []
    local_hub("rajpurkar/squad_v2", None, "train", [row | answered])
    with pytest.raises(UserError, match="row 0: there are 0 texts but 1 starts"):
        load_squad("squad_v2", "train")


def test_hub_out_of_reach(local_hub):
    with pytest.raises(UserError, match=r"^cannot load rajpurkar/squad from the hub \(.*\); set --data-dir[^\n]*$"):
        load_squad("squad_v1", "dev")


def test_real_files_have_the_published_sizes():
    assert len(squad("squad_v1")) == 10570
    assert len(squad("squad_v2")) == 11873
    assert sum(q.impossible for q in squad("squad_v2")) == 5945
    assert len(squad("squad_v1", "train")) > 6000
