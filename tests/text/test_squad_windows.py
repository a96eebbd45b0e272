"""Windows cover the context, overlap as asked, and know where the answer is."""

import random

import numpy as np
import pytest
import torch

from capaboost_core.errors import UserError
from capaboost_text.squad.task import collate, strip_padding
from capaboost_text.squad.windows import make_windows
from tests.text.squad_case import FAMILIES, SPECIAL, TEXT, ask, squad, tokenizer


def held(window):
    return [tuple(span) for span in window.offsets.tolist() if span[0] >= 0]


def touched(spans, answer):
    """The tokens that share a character with the answer."""
    return [span for span in spans if span[0] < answer.start + len(answer.text) and span[1] > answer.start]


def check_question(question, index, windows, tok, stride):
    """Coverage, overlap, the whole question, and the answer's tokens, against the context tokenised at once."""
    whole = tok(question.context, add_special_tokens=False, return_offsets_mapping=True)
    asked = tok(question.question.strip(), add_special_tokens=False)["input_ids"]
    at, inside = 0, 0
    for window in windows:
        assert window.question == index
        ids, outside = window.input_ids.tolist(), window.offsets[:, 0] < 0
        size = len(ids) - outside.sum()
        assert ids[window.cls] == tok.cls_token_id
        assert [i for i, out in zip(ids, outside, strict=True) if not out] == whole["input_ids"][at : at + size]
        assert held(window) == whole["offset_mapping"][at : at + size]
        rest = [i for i, out in zip(ids, outside, strict=True) if out]
        assert asked == [i for i in rest if i not in (tok.cls_token_id, tok.sep_token_id)]
        at += size - stride
        inside += check_answer(question, window, whole["offset_mapping"])
    assert at + stride == len(whole["input_ids"])
    return inside


def check_answer(question, window, every_span):
    wanted = touched(every_span, question.answers[0]) if question.answers else []
    if not wanted or wanted != touched(held(window), question.answers[0]):
        assert (window.start, window.end) == (window.cls, window.cls)
        return 0
    assert window.offsets[window.start].tolist() == list(wanted[0])
    assert window.offsets[window.end].tolist() == list(wanted[-1])
    begin, stop = window.offsets[window.start, 0], window.offsets[window.end, 1]
    assert question.answers[0].text in question.context[begin:stop]
    return 1


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_real_questions_are_found_again(family):
    rng = random.Random(0)
    questions = rng.sample(squad("squad_v2"), 60) + rng.sample(squad("squad_v1", "train"), 20)
    tok, stride = tokenizer(family), 48
    windows = make_windows(questions, tok, 160, stride)
    assert [w.question for w in windows] == sorted(w.question for w in windows)
    found = 0
    for index, question in enumerate(questions):
        own = [w for w in windows if w.question == index]
        assert len(own) >= 1
        found += bool(check_question(question, index, own, tok, stride))
    assert found > 0.8 * sum(not q.impossible for q in questions)  # the tiny vocabulary makes some answers long
    assert max(map(len, windows)) == 160


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", ["The", "Norman dynasty", "Duke William", "£1,500", "Édouard", "Rouen.", "066"])
def test_answer_is_read_back(family, answer):
    windows = make_windows([ask(TEXT * 3, answer)], tokenizer(family), 70, 30)
    spans = [w.offsets[[w.start, w.end]] for w in windows if w.start != w.cls]
    assert spans
    for span in spans:
        assert answer in TEXT[span[0, 0] : span[1, 1]]


def test_short_context_is_one_window_without_offsets_if_not_wanted():
    (window,) = make_windows([ask("William won.", "William")], tokenizer(), 384, 128, offsets=False)
    assert window.offsets is None
    assert window.token_type_ids[window.start] == 1
    assert window.start > window.cls == 0
    (window,) = make_windows([ask("William won.", "William")], tokenizer("roberta"))
    assert window.token_type_ids is None


def test_long_questions_stand_whole_and_change_the_overlap_only_of_their_own():
    tok, room = tokenizer(), 21
    long = ask(TEXT * 2, "Duke William", question="   " + "who " * 40)
    short = ask(TEXT * 2, "Duke William")
    length = len(tok(long.question.strip(), add_special_tokens=False)["input_ids"]) + 3 + room
    windows = make_windows([short, long, short], tok, length, 40)
    for index, overlap in ((0, 40), (1, room // 2), (2, 40)):
        own = [w for w in windows if w.question == index]
        check_question([short, long, short][index], index, own, tok, overlap)


def test_answer_at_dropped_characters():
    tok = tokenizer()
    context = "\u0000William won\u0000"
    (window,) = make_windows([ask(context, context)], tok)
    begin, stop = window.offsets[window.start, 0], window.offsets[window.end, 1]
    assert context[begin:stop].strip("\u0000") == "William won"
    (empty,) = make_windows([ask("\u0000", "\u0000")], tok)
    assert empty.start == empty.end == empty.cls
    assert not held(empty)


def test_cls_spelled_out_in_the_context():
    (window,) = make_windows([ask("William [CLS] won", "won")], tokenizer("left"))
    assert window.cls == len(window) - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_moves_the_answers_along(family):
    tok = tokenizer(family)
    windows = make_windows([ask(TEXT, "Duke William"), ask("William won.", "won")], tok, 60, 30)
    batch = collate(windows, tok, multiple=8)
    assert (
        batch["input_ids"].shape
        == batch["attention_mask"].shape
        == (len(windows), -(-max(map(len, windows)) // 8) * 8)
    )
    assert ("token_type_ids" in batch) == (family != "roberta")
    for row, window in enumerate(windows):
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == window.input_ids.tolist()
        assert (batch["input_ids"][row][~real] == tok.pad_token_id).all()
        start, end = batch["start_positions"][row], batch["end_positions"][row]
        assert batch["input_ids"][row, start] == window.input_ids[window.start]
        assert batch["input_ids"][row, end] == window.input_ids[window.end]
    logits = batch["input_ids"].numpy()
    for row, window in zip(strip_padding(logits, windows, tok.padding_side), windows, strict=True):
        assert np.array_equal(row, window.input_ids)
    assert batch["start_positions"].dtype == batch["input_ids"].dtype == torch.int64


def other_tokenizer(**changes):
    tok = type(tokenizer())(tokenizer_object=tokenizer().backend_tokenizer, **SPECIAL)
    for name, value in changes.items():
        setattr(tok, name, value)
    return tok


@pytest.mark.parametrize(
    ("changes", "lengths", "message"),
    [
        ({}, (0, 0), "max_length is 0"),
        ({}, (True, 0), "max_length is True"),
        ({}, (64, -1), "stride is -1"),
        ({}, (64, 64), "stride is 64 and max_length 64"),
        ({}, (64.0, 8), "max_length is 64.0"),
        ({}, (6, 2), "question 'q' has .* raise max_length"),
        ({"model_max_length": 32}, (64, 8), "set it to 32 or less"),
        ({"cls_token": None}, (64, 8), "no CLS token"),
    ],
)
def test_bad_lengths(changes, lengths, message):
    with pytest.raises(UserError, match=message):
        make_windows([ask()], other_tokenizer(**changes), *lengths)
