"""Files of texts become rows of tokens: what is predicted, what is cut, what is held out, and how rows are packed."""

import copy
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from capaboost_core import UserError
from capaboost_text.lm.data import IGNORED, Block, Document, Encoder, pack, read_documents, split
from tests.text.squad_case import TEXT
from tests.text.tiny_decoder import TEMPLATE, tokenizer

BOS, EOS = 0, 1
WORDS = TEXT.split()


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return path


def rows_of(folder, rows, begins=True, length=64):
    encoder = Encoder(tokenizer(begins), length)
    return encoder.rows(read_documents(write(folder, rows))), encoder


def decoded(block: Block, labels: bool = False) -> str:
    ids = block.labels[block.labels != IGNORED] if labels else block.input_ids
    return tokenizer().decode(ids)


def test_a_text_is_predicted_from_its_first_token_to_its_end(tmp_path):
    ((row,),), _ = rows_of(tmp_path, [{"text": "Duke William", "source": "a book"}])
    assert decoded(row) == "<s>Duke William</s>"
    assert decoded(row, labels=True) == "Duke William</s>"
    assert row.positions.tolist() == list(range(len(row)))
    ((row,),), _ = rows_of(tmp_path, [{"text": "Duke William"}], begins=False)
    assert (decoded(row), row.labels[0]) == ("Duke William</s>", IGNORED)  # nothing stands before its first token
    assert (row.labels[1:] == row.input_ids[1:]).all()


def test_of_a_prompt_nothing_is_predicted(tmp_path):
    ((row,),), _ = rows_of(tmp_path, [{"prompt": "Who conquered it?", "completion": " Duke William"}])
    assert decoded(row) == "<s>Who conquered it? Duke William</s>"
    assert decoded(row, labels=True) == " Duke William</s>"


def test_a_token_that_reaches_over_the_border_is_predicted(tmp_path):
    """The tokens are those of the joined text, as at inference up to the border."""
    ((row,),), _ = rows_of(tmp_path, [{"prompt": "conquer", "completion": "ed"}])
    assert row.input_ids.tolist() == [BOS, *tokenizer()("conquered", add_special_tokens=False)["input_ids"], EOS]
    assert tokenizer().tokenize("conquer")[-2:] == ["e", "r"]  # of the joined text "ere" is one token
    assert decoded(row, labels=True) == "ered</s>"


@pytest.mark.parametrize("begins", [True, False])
def test_what_a_text_holds_itself_of_beginning_and_end_is_not_doubled(begins, tmp_path):
    """Files that were made with a template hold them."""
    begin = "<s>" * begins
    rows = [{"text": f"{begin}{TEXT}</s>"}, {"text": TEXT}]
    (first, second), _ = rows_of(tmp_path, rows, begins, length=16)
    assert [row.input_ids.tolist() for row in first] == [row.input_ids.tolist() for row in second]
    rows = [{"prompt": f"{begin}Who?", "completion": " William</s>"}, {"prompt": "Who?", "completion": " William"}]
    ((first,), (second,)), encoder = rows_of(tmp_path, rows, begins)
    assert (decoded(first), decoded(first, labels=True)) == (f"{begin}Who? William</s>", " William</s>")
    assert first.labels.tolist() == second.labels.tolist()
    assert len(set(map(tuple, encoder.prompts([f"{begin}Who?", "Who?"])))) == 1


def test_a_text_does_not_begin_with_the_unknown_token(tmp_path):
    """The letter that finds out what stands before a text may be unknown, as in an alphabet of bases."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "A": 2, "C": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    (row,) = Encoder(words, 16).rows([Document("", "CAA")])[0]
    assert row.input_ids.tolist() == [3, 2, 2, 1]


def test_line_ends_of_windows_are_line_ends(tmp_path):
    (tmp_path / "book.txt").write_bytes(b"Duke\r\nWilliam\n")
    assert read_documents(tmp_path / "book.txt")[0].content == "Duke\nWilliam\n"


CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "William"}]


def test_messages_go_through_the_template(tmp_path):
    text = "<user>Who?</s><assistant>William</s>"
    ((row,),), _ = rows_of(tmp_path, [{"messages": CHAT}])
    assert decoded(row) == text
    assert (row.labels[1:] == row.input_ids[1:]).all()  # all are predicted, as in TRL's format of this name
    ((row,),), _ = rows_of(tmp_path, [{"prompt": CHAT[:1], "completion": CHAT[1:]}])
    assert (decoded(row), decoded(row, labels=True)) == (text, "William</s>")


LAST = TEMPLATE.replace("<{{", "{% if loop.last and m['role'] == 'user' %}<system>{% endif %}<{{")
ONCE = TEMPLATE.replace("{{ eos_token }}{% endfor %}", "{% endfor %}{{ eos_token }}")
THINKS = TEMPLATE.replace("<assistant>{% endif", "<assistant><think>{% endif")


def test_no_token_of_a_prompt_is_predicted_whatever_the_template(tmp_path):
    """Some write a prompt otherwise where it is the end, such as with the system's message in its last one."""
    words, path = copy.deepcopy(tokenizer()), write(tmp_path, [{"prompt": CHAT[:1], "completion": CHAT[1:]}])
    for template, predicted in ((ONCE, "<assistant>William</s>"), (THINKS, "William</s>")):
        words.chat_template = template
        (row,) = Encoder(words, 64).rows(read_documents(path))[0]
        assert decoded(row, labels=True) == predicted
    words.chat_template = LAST
    with pytest.raises(UserError, match=r"line 1: the template of .* writes this prompt otherwise before its comp"):
        Encoder(words, 64).rows(read_documents(path))


@pytest.mark.parametrize("begins", [True, False])
def test_a_long_text_goes_on_in_further_rows_and_no_token_is_lost(begins, tmp_path):
    (rows,), encoder = rows_of(tmp_path, [{"text": TEXT}], begins, length=16)
    begin = [BOS] if begins else []
    assert all(len(row) == 16 for row in rows[:-1])
    assert all(row.input_ids[: len(begin)].tolist() == begin for row in rows)
    joined = np.concatenate([row.input_ids[len(begin) :] for row in rows]).tolist()
    assert joined == [*tokenizer()(TEXT, add_special_tokens=False)["input_ids"], EOS]
    assert encoder.cut == 0


def test_a_completion_is_cut_and_one_without_room_is_left_out(tmp_path):
    short, long = "Who?", TEXT
    made, encoder = rows_of(
        tmp_path,
        [
            {"prompt": short, "completion": TEXT},
            {"prompt": long, "completion": "x"},
            {"prompt": short, "completion": "x"},
        ],
        length=16,
    )
    assert [len(rows) for rows in made] == [1, 0, 1]
    assert len(made[0][0]) == 16
    assert (encoder.cut, encoder.lost) == (2, 1)


WRONG = {
    "empty": ("", "a.txt", "a.txt is empty; give a file with text"),
    "blank": (" \n\n", "a.txt", "a.txt is empty"),
    "no lines": ("\n\n", "a.jsonl", "a.jsonl holds no rows"),
    "no JSON": ('{"text": "a"}\n{"text": \n', "a.jsonl", "a.jsonl, line 2 is not JSON"),
    "no JSON at first": ("{\n", "a.json", "a.json, line 1 is not JSON"),
    "a list": ('["a"]\n', "a.jsonl", "a.jsonl is one JSON list; save it as JSON lines, each an object"),
    "a list on lines": ('[\n {"text": "a"}\n]\n', "a.json", "a.json is one JSON list"),
    "a number of a line": ('{"text": "a"}\n3\n', "a.jsonl", "line 2 is no object with names"),
    "tools": ('{"messages": [], "tools": [{}]}\n', "a.jsonl", "its lines have tools, which are not read; give text"),
    "another key": ('{"content": "a"}\n', "a.jsonl", "its lines have 'content'; rename what they hold to text"),
    "half a pair": ('{"prompt": "a"}\n', "a.jsonl", "its lines have 'prompt'; rename"),
    "a missing key": ('{"text": "a"}\n\n{"txt": "a"}\n', "a.jsonl", "line 3 has no 'text' but 'txt'"),
    "a number": ('{"text": 3}\n', "a.jsonl", "line 1: text is 3 and not text"),
    "a null": ('{"prompt": "a", "completion": null}\n', "a.jsonl", "line 1: completion is None and not text"),
    "an empty text": ('{"text": "  "}\n', "a.jsonl", "line 1: text is empty"),
    "no messages": ('{"messages": []}\n', "a.jsonl", "line 1: messages is empty"),
    "a message": ('{"messages": [{"role": "user"}]}\n', "a.jsonl", "each message of messages must be an object"),
    "messages as text": ('{"messages": "hello"}\n', "a.jsonl", "messages is 'hello' and not a list of messages"),
    "half messages": (
        '{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}\n',
        "a.jsonl",
        "of prompt and completion one is text",
    ),
    "half a character": ('{"text": "\\ud800"}\n', "a.jsonl", "holds half a surrogate pair"),
    "a table": ("text\na\n", "a.csv", "a.csv is a table; save its texts as JSON lines"),
    "other bytes": ("\udcff", "a.txt", "a.txt is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line_that_names_the_place(case, tmp_path):
    content, name, message = WRONG[case]
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        read_documents(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_or_a_template_is_refused(tmp_path):
    words = copy.deepcopy(tokenizer())
    words.chat_template = None
    with pytest.raises(UserError, match=r"line 1: the tokenizer of .* makes no text of these messages"):
        Encoder(words, 16).rows(read_documents(write(tmp_path, [{"messages": CHAT}])))
    words.eos_token = None
    with pytest.raises(UserError, match="has no end token"):
        Encoder(words, 16)


def splits(folder, documents, selects, share=0.25, seed=0, validation=None, test=None):
    path = write(folder, documents)
    more = [write(folder, rows, name) if rows else None for rows, name in ((validation, "v.jsonl"), (test, "t.jsonl"))]
    made = split(Encoder(tokenizer(), 16), path, *more, selects, share, seed)
    return [[decoded(row).removeprefix("<s>").removesuffix("</s>") for row in rows] for rows in made]


def test_splits_share_no_document_and_follow_the_seed(tmp_path):
    documents = [{"text": f"{word} {i}"} for i, word in enumerate(WORDS[:16])]
    train, selection, test = splits(tmp_path, documents, selects=True)
    assert [len(part) for part in (train, selection, test)] == [12, 2, 2]
    assert sorted([*train, *selection, *test]) == sorted(row["text"] for row in documents)
    assert train == [row["text"] for row in documents if row["text"] in train]  # in the order of the file
    again, other = (splits(tmp_path, documents, selects=True, seed=seed) for seed in (0, 1))
    assert again == [train, selection, test]
    assert other[0] != train
    last, none, all_held = splits(tmp_path, documents, selects=False)
    assert (last, none, sorted(all_held)) == (train, [], sorted([*selection, *test]))


def test_files_for_validation_and_test(tmp_path):
    documents, held, tests = ([{"text": f"{name} {i}"} for i in range(4)] for name in ("train", "held", "test"))
    texts = {name: [row["text"] for row in rows] for name, rows in (("a", documents), ("b", held), ("c", tests))}
    train, selection, test = splits(tmp_path, documents, True, validation=held, test=tests)
    assert (train, selection, test) == (texts["a"], texts["b"], texts["c"])
    train, selection, test = splits(tmp_path, documents, True, validation=held)
    assert (train, len(selection), sorted([*selection, *test])) == (texts["a"], 2, texts["b"])
    assert splits(tmp_path, documents, False, validation=held) == [texts["a"], [], texts["b"]]
    train, selection, test = splits(tmp_path, documents, True, test=tests)
    assert (len(train), len(selection), test) == (3, 1, texts["c"])


def test_held_out_texts_that_are_trained_on_are_counted_and_refused_where_there_are_no_others(tmp_path):
    path = write(tmp_path, [{"text": word} for word in WORDS[:9]])
    held = write(tmp_path, [{"text": word} for word in (*WORDS[:3], "another")], "held.jsonl")
    encoder = Encoder(tokenizer(), 16)
    assert split(encoder, path, held, None, True, 0.1, 0).repeated == 3
    assert split(encoder, path, None, None, True, 0.3, 0).repeated == 0
    for validation, rows in ((path, None), (None, [{"text": "the same"}] * 9)):
        name = path if rows is None else write(tmp_path, rows, "same.jsonl")
        with pytest.raises(UserError, match=r"all held-out texts are among those of .* give others as --validation"):
            split(encoder, name, validation, None, True, 0.3, 0)


def test_of_one_document_rows_are_held_out(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    encoder = Encoder(tokenizer(), 16)
    made = split(encoder, tmp_path / "book.txt", None, None, True, 0.4, 0)
    joined = sorted(decoded(row) for part in made for row in part)
    assert joined == sorted(
        decoded(row) for row in Encoder(tokenizer(), 16).rows(read_documents(tmp_path / "book.txt"))[0]
    )
    assert all(made)
    (tmp_path / "book.txt").write_text("Duke William")
    with pytest.raises(UserError, match=r"is too short to hold out 0.4 of it; give more text, or --validation FILE"):
        split(encoder, tmp_path / "book.txt", None, None, True, 0.4, 0)
    path = write(tmp_path, [{"prompt": TEXT, "completion": "x"}] * 3)
    with pytest.raises(UserError, match="has no row with a token to predict"):
        split(encoder, path, None, None, True, 0.4, 0)


@pytest.mark.parametrize("seed", range(5))
def test_packing_keeps_every_row_and_wastes_little(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 33, 200)
    rows = [Block(ids := np.full(n, i), ids.copy(), np.arange(n)) for i, n in enumerate(lengths)]
    blocks = pack(rows, 32)
    assert max(map(len, blocks)) <= 32
    found = []
    for block in blocks:
        starts = np.flatnonzero(block.positions == 0)
        for part, places in zip(
            np.split(block.input_ids, starts[1:]), np.split(block.positions, starts[1:]), strict=True
        ):
            assert places.tolist() == list(range(len(part)))
            assert len(set(part)) == 1
            found.append((part[0], len(part)))
    assert sorted(found) == list(enumerate(lengths))
    assert len(blocks) <= 11 / 9 * np.ceil(lengths.sum() / 32) + 1
