"""Post-processing finds what a search over all spans finds."""

import math

import numpy as np
import pytest

from capaboost_core.errors import UserError
from capaboost_text.squad.answers import Prediction, predict
from capaboost_text.squad.windows import make_windows
from tests.text.squad_case import FAMILIES, TEXT, ask, tokenizer


def random_logits(windows, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=len(w)).astype(np.float32) for w in windows] for _ in range(2)]


def brute(question, windows, starts, ends, longest):
    """Score of each text range over all windows and all pairs of tokens, best first."""
    scores = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        inside = [i for i, span in enumerate(window.offsets) if span[0] >= 0]
        for i in inside:
            for j in inside:
                if not 0 <= j - i < longest:
                    continue
                begin, stop = int(window.offsets[i][0]), int(window.offsets[j][1])
                while begin < stop and question.context[begin].isspace():
                    begin += 1
                while begin < stop and question.context[stop - 1].isspace():
                    stop -= 1
                if begin < stop:
                    score = float(start[i]) + float(end[j])
                    scores[begin, stop] = max(score, scores.get((begin, stop), -math.inf))
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


@pytest.mark.parametrize("longest", [1, 7, 500])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_search_over_all_spans(family, longest):
    questions = [ask(TEXT), ask("  William\u00a0 won ."), ask(TEXT[40:120])]
    windows = make_windows(questions, tokenizer(family), 60, 20)
    starts, ends = random_logits(windows)
    predictions = predict(questions, windows, starts, ends, n_best=12, max_answer_length=longest)
    for index, (question, prediction) in enumerate(zip(questions, predictions, strict=True)):
        rows = [r for r in zip(windows, starts, ends, strict=True) if r[0].question == index]
        expected = brute(question, *zip(*rows, strict=True), longest)[:12]
        assert [(c.begin, c.stop) for c in prediction.candidates] == [span for span, _ in expected]
        assert [c.score for c in prediction.candidates] == [score for _, score in expected]
        assert all(c.text == question.context[c.begin : c.stop] for c in prediction.candidates)
        assert prediction.text == prediction.candidates[0].text
        null = min(float(start[w.cls]) + float(end[w.cls]) for w, start, end in rows)
        assert prediction.null_score == null
        assert prediction.null_gap == null - expected[0][1]


def test_order_of_windows_does_not_matter():
    questions = [ask(TEXT), ask(TEXT[10:])]
    windows = make_windows(questions, tokenizer(), 60, 20)
    starts, ends = random_logits(windows)
    turned = [list(reversed(values)) for values in (windows, starts, ends)]
    assert predict(questions, *turned) == predict(questions, windows, starts, ends)


def test_perfect_logits_give_the_answer():
    question = ask(TEXT * 3, "Duke William")
    windows = make_windows([question], tokenizer(), 70, 30)
    starts, ends = ([np.zeros(len(w), np.float32) for w in windows] for _ in range(2))
    for window, start, end in zip(windows, starts, ends, strict=True):
        start[window.start] = end[window.end] = 9.0
    (prediction,) = predict([question], windows, starts, ends)
    assert prediction.text == "Duke William"
    assert prediction.null_score == 0.0  # a window that holds the answer does not point at CLS


def test_threshold_is_exclusive():
    prediction = Prediction("q", "William", 1.0, 3.0, ())
    assert prediction.null_gap == 2.0
    assert [prediction.answer(t) for t in (1.9, 2.0, 2.1)] == ["", "William", "William"]
    assert prediction.answer() == ""


def test_context_without_tokens_has_no_answer():
    question = ask("\u0000")
    windows = make_windows([question], tokenizer())
    (prediction,) = predict([question], windows, *random_logits(windows))
    assert (prediction.text, prediction.score, prediction.candidates) == ("", 0.0, ())
    assert math.isfinite(prediction.null_gap)


def test_diverged_and_misfit_logits():
    question = ask()
    windows = make_windows([question], tokenizer())
    starts, ends = random_logits(windows)
    with pytest.raises(UserError, match="set both to 1 or more"):
        predict([question], windows, starts, ends, n_best=0)
    with pytest.raises(ValueError, match="has no window"):
        predict([question, question], windows, starts, ends)
    with pytest.raises(ValueError, match="logits of shapes"):
        predict([question], windows, [starts[0][1:]], ends)
    bare = make_windows([question], tokenizer(), offsets=False)
    with pytest.raises(ValueError, match="offsets=True"):
        predict([question], bare, starts, ends)
    starts[0][3] = np.nan
    with pytest.raises(UserError, match="diverged"):
        predict([question], windows, starts, ends)
