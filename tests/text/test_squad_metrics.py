"""Exact match and F1 agree with a plain second version of the official scripts on every dev question."""

import random
from functools import cache

import pytest

from capaboost_core.errors import UserError
from capaboost_text.squad.data import Question, Reference
from capaboost_text.squad.metrics import best_threshold, evaluate, normalise, score_question
from tests.text.squad_case import squad

DATASETS = {"squad_v1": 10570, "squad_v2": 11873}


@cache
def plain_words(text):
    """Words after lowering, dropping ASCII punctuation and then articles, found letter by letter."""
    kept = "".join(c for c in text.lower() if not (c.isascii() and c.isprintable() and not c.isalnum() and c != " "))
    pieces, run = [], ""
    for letter in kept + " ":
        if letter.isalnum() or letter == "_":  # what \w is
            run += letter
            continue
        pieces += [" " if run in ("a", "an", "the") else run, letter]
        run = ""
    return tuple("".join(pieces).split())


def plain_f1(predicted, expected, version2):
    if version2 and (not predicted or not expected):
        return float(predicted == expected)
    left, same = list(expected), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def plain_score(question, prediction, version2):
    golds = [plain_words(answer.text) for answer in question.answers]
    if version2:
        golds = [gold for gold in golds if gold] or [()]
    predicted = plain_words(prediction)
    return (
        max(float(predicted == gold) for gold in golds),
        max(plain_f1(predicted, gold, version2) for gold in golds),
    )


def changed(text, rng):
    return rng.choice(
        [
            "The " + text.upper() + " !",
            "“" + text + "”",
            text.replace(" ", "\u00a0 the\t"),
            text.replace("-", "–").replace("e", "é", 1),
            "an a–" + text.replace(",", " ,") + "_the_",
            text.title() + "'s",
        ]
    )


def guesses(question, rng):
    """Predictions of every kind for one question."""
    texts = [answer.text for answer in question.answers] or [""]
    words = texts[0].split() or ["nothing"]
    yield from (texts[0], rng.choice(texts), " ".join(words[: (len(words) + 1) // 2]), changed(texts[-1], rng))
    at = rng.randrange(len(question.context))
    yield from ("", rng.choice(["the", ".", " ", "A an. The"]), question.context[at : at + 25], words[-1] * 2)


@pytest.mark.parametrize("dataset", DATASETS)
def test_agrees_on_every_dev_question(dataset):
    rng, version2 = random.Random(0), dataset == "squad_v2"
    questions = squad(dataset)
    assert len(questions) == DATASETS[dataset]
    columns = list(zip(*(guesses(question, rng) for question in questions), strict=True))
    for column in columns:
        expected = [plain_score(q, text, version2) for q, text in zip(questions, column, strict=True)]
        pairs = zip(questions, column, expected, strict=True)
        for question, text, wanted in pairs:
            assert score_question(question, text, version2) == wanted, (question.id, text)
        report = evaluate(questions, {q.id: t for q, t in zip(questions, column, strict=True)}, dataset)
        parts = {"": lambda q: True}
        if version2:
            parts |= {"HasAns_": lambda q: not q.impossible, "NoAns_": lambda q: q.impossible}
        for prefix, chosen in parts.items():
            scores = [score for q, score in zip(questions, expected, strict=True) if chosen(q)]
            assert report.pop(prefix + "total") == len(scores)
            for name, values in zip(("exact", "f1"), zip(*scores, strict=True), strict=True):
                assert report.pop(prefix + name) == pytest.approx(100 * sum(values) / len(values), abs=1e-9)
        assert not report


def test_thresholds_agree_on_v2_with_ties():
    rng, questions = random.Random(1), squad("squad_v2")
    predictions = {q.id: rng.choice([*guesses(q, rng)]) for q in questions}
    gaps = {q.id: round(rng.gauss(3.0 if q.impossible else -1.0, 3.0), 2) for q in questions}
    report = evaluate(questions, predictions, "squad_v2", gaps, threshold=0.7)
    answerable = {q.id: not q.impossible for q in questions}
    raw = {q.id: plain_score(q, predictions[q.id], True) for q in questions}
    for column, name in enumerate(("exact", "f1")):
        kept = [raw[i][column] if gaps[i] <= 0.7 else float(not answerable[i]) for i in gaps]
        assert report[name] == pytest.approx(100 * sum(kept) / len(kept), abs=1e-9)
        score = top = len(questions) - sum(answerable.values())
        at = 0.0
        for i in sorted(gaps, key=lambda i: gaps[i]):
            score += raw[i][column] if answerable[i] else (-1 if predictions[i] else 0)
            if score > top:
                top, at = score, gaps[i]
        assert report[f"best_{name}"] == pytest.approx(100 * top / len(questions), abs=1e-9)
        assert report[f"best_{name}_thresh"] == at


def test_best_threshold_is_the_best_of_all():
    rng = random.Random(2)
    questions = [make(str(i), "word" if rng.random() < 0.6 else "") for i in range(60)]
    gaps = {q.id: rng.random() for q in questions}
    predictions = {q.id: "word" if rng.random() < 0.7 else "other" for q in questions}
    scores = {q.id: float(not q.impossible and predictions[q.id] == "word") for q in questions}

    def at(threshold):
        return sum(
            scores[i] if gaps[i] <= threshold else float(q.impossible) for i, q in zip(gaps, questions, strict=True)
        )

    best, threshold = best_threshold(questions, predictions, scores, gaps)
    assert best == pytest.approx(100 * max(at(t) for t in [0.0, *gaps.values()]) / 60)
    assert at(threshold) == max(at(t) for t in gaps.values())


def make(name, *texts):
    answers = tuple(Reference(text, 0) for text in texts if text)
    return Question(name, "?", "word", answers, not answers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, the (hat)!", "cat hat"),
        ("U.S.A.", "usa"),
        ("a_b An", "ab"),
        ("“The” cat’s–a", "“ ” cat’s–"),
        ("Theatre an\u00a0hour", "theatre hour"),
        ("", ""),
        (". the", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise(text) == expected


def test_lone_punctuation_among_the_references():
    question = make("q", "war", ".")
    assert score_question(question, "", has_null=False) == (1.0, 0.0)
    assert score_question(question, "", has_null=True) == (0.0, 0.0)
    assert score_question(make("q", "."), "", has_null=True) == (1.0, 1.0)


def test_missing_predictions():
    questions = [make("1", "x"), make("2", "y")]
    assert evaluate(questions, {"1": "x"}, "squad_v1") == {"exact": 50.0, "f1": 50.0, "total": 2}
    report = evaluate(questions, {"1": "x", "2": "", "3": "z"}, "squad_v2")
    assert report["HasAns_total"] == 2
    assert "NoAns_total" not in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], {}, "squad_v1"), "no questions"),
        (([make("1", "x")], {}, "squad_v2"), "predictions lack 1 questions, such as '1'"),
        (([make("1", "x")], {"1": ""}, "squad_v2", {}), "null_gaps lack 1"),
        (([make("1", "x")], {"1": ""}, "squad_v1", {"1": 0.0}), "null_gaps belong to squad_v2"),
        (([make("1", "x")], {"1": ""}, "squad"), "squad_v1, squad_v2"),
    ],
)
def test_bad_calls(arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate(*arguments)
