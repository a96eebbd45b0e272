"""Answers in words from start and end logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capaboost_core.errors import UserError
from capaboost_text.squad.data import Question
from capaboost_text.squad.windows import Window


@dataclass(frozen=True)
class Candidate:
    """A stretch of the context, context[begin:stop], and its score: start logit plus end logit."""

    text: str
    score: float
    begin: int
    stop: int


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one question.

    Attributes:
        id: The question's id.
        text: The best answer that is not empty; empty only if the context has no token.
        score: Its score, 0 if there is none.
        null_score: Score of "no answer": the lowest over the windows of the CLS token's two logits, since
            a window without the answer rightly says so of itself.
        candidates: The best answers, best first.
    """

    id: str
    text: str
    score: float
    null_score: float
    candidates: tuple[Candidate, ...]

    @property
    def null_gap(self) -> float:
        """The score of "no answer" minus that of the best answer."""
        return self.null_score - self.score

    def answer(self, threshold: float = 0.0) -> str:
        """The best answer of SQuAD v2.0: empty where the gap is above the threshold."""
        return "" if self.null_gap > threshold else self.text


def predict(
    questions: Sequence[Question],
    windows: Sequence[Window],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    n_best: int = 20,
    max_answer_length: int = 30,
) -> list[Prediction]:
    """The best answers to each question over all its windows.

    Every span of the context is scored, where the usual script pairs the 20 best starts with the 20 best
    ends: the same answer nearly always, and an answer also where those pairs hold no valid span.

    Args:
        questions: What was asked.
        windows: Their windows, with offsets, in any order.
        start_logits: (n,) for each window, without padding.
        end_logits: Likewise.
        n_best: Candidates to keep for each question.
        max_answer_length: Tokens of the longest answer.

    Raises:
        UserError: If a logit is not a number, or n_best or max_answer_length is below 1.
        ValueError: If windows and logits do not fit each other, or a question has no window.
    """
    if n_best < 1 or max_answer_length < 1:
        raise UserError(f"n_best is {n_best} and max_answer_length {max_answer_length}; set both to 1 or more")
    found: list[dict[tuple[int, int], float]] = [{} for _ in questions]
    null = [np.inf] * len(questions)
    for window, start, end in zip(windows, start_logits, end_logits, strict=True):
        _check(questions[window.question], window, start, end)
        index = window.question
        null[index] = min(null[index], float(start[window.cls]) + float(end[window.cls]))
        context = questions[index].context
        for span, score in _spans(window, start, end, context, n_best, max_answer_length).items():
            found[index][span] = max(score, found[index].get(span, -np.inf))
    return [_prediction(*row, n_best) for row in zip(questions, found, null, strict=True)]


def _check(question: Question, window: Window, start: np.ndarray, end: np.ndarray) -> None:
    if window.offsets is None:
        raise ValueError("windows without offsets cannot be read; make them with offsets=True")
    if start.shape != (len(window),) or end.shape != (len(window),):
        raise ValueError(f"a window of {len(window)} tokens has logits of shapes {start.shape} and {end.shape}")
    if np.isnan(start).any() or np.isnan(end).any():
        raise UserError(f"question {question.id!r} has logits that are not numbers: training diverged; lower train.lr")


def _spans(
    window: Window, start: np.ndarray, end: np.ndarray, context: str, n_best: int, longest: int
) -> dict[tuple[int, int], float]:
    """The window's best spans, n_best at least if there are so many: ranges of characters with their scores."""
    assert window.offsets is not None  # `_check` refuses it
    tokens = np.flatnonzero(window.offsets[:, 0] >= 0)
    offsets = window.offsets[tokens]
    if not len(tokens):
        return {}
    # Row i of the table is a start, column j an end j tokens further: (m, longest).
    ends = np.concatenate([end[tokens].astype(np.float64), np.full(longest - 1, -np.inf)])
    table = start[tokens].astype(np.float64)[:, None] + np.lib.stride_tricks.sliding_window_view(ends, longest)
    table = np.where(_shown(offsets, context, longest), table, -np.inf).ravel()
    found, count = {}, min(n_best, table.size)
    # Tokens that share a character, or differ by whitespace only, give one text several times: then look further.
    while True:
        best = np.argpartition(-table, count - 1)[:count]
        for at in best[table[best] > -np.inf].tolist():
            begin, stop = offsets[at // longest, 0], offsets[at // longest + at % longest, 1]
            span = _trim(context, int(begin), int(stop))
            found[span] = max(float(table[at]), found.get(span, -np.inf))
        if len(found) >= n_best or count == table.size:
            return found
        count = min(2 * count, table.size)


def _shown(offsets: np.ndarray, context: str, longest: int) -> np.ndarray:
    """(m, longest) true where a span has something other than whitespace in it."""
    solid = np.array([not context[begin:stop].isspace() and stop > begin for begin, stop in offsets.tolist()])
    seen = np.concatenate([[0], np.cumsum(solid), np.full(longest - 1, solid.sum())])
    return np.lib.stride_tricks.sliding_window_view(seen[1:], longest) > seen[: len(offsets), None]


def _trim(context: str, begin: int, stop: int) -> tuple[int, int]:
    """The range without whitespace at its edges: some tokenizers count the space before a word to its token."""
    text = context[begin:stop]
    return begin + len(text) - len(text.lstrip()), stop - (len(text) - len(text.rstrip()))


def _prediction(question: Question, found: dict[tuple[int, int], float], null: float, n_best: int) -> Prediction:
    if null == np.inf:
        raise ValueError(f"question {question.id!r} has no window")
    order = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    candidates = tuple(Candidate(question.context[a:b], score, a, b) for (a, b), score in order)
    text, score = (candidates[0].text, candidates[0].score) if candidates else ("", 0.0)
    return Prediction(question.id, text, score, null, candidates)
