"""Exact match and F1 of SQuAD, to the digit as the official scripts for v1.1 and v2.0 count them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from capaboost_core.errors import UserError
from capaboost_text.squad.data import Question, find_source

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only: quotes such as “ stay, as officially


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and superfluous whitespace, in the official order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def token_f1(prediction: str, reference: str, both_empty: float) -> float:
    """F1 of the words of two normalised texts, counted with repetition.

    `both_empty` is what two empty texts score: 0 in the v1.1 script, which finds no word in common, and 1
    in v2.0, where empty means "no answer".
    """
    predicted, expected = prediction.split(), reference.split()
    if not predicted and not expected:
        return both_empty
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def score_question(question: Question, prediction: str, has_null: bool) -> tuple[float, float]:
    """Exact match and F1 in 0 to 1, each the best over the references.

    v2.0 leaves out references of which normalisation leaves nothing, and asks for an empty prediction
    where no reference is left; v1.1 compares with them all (three of its dev questions have a lone `.`).
    """
    predicted = normalise(prediction)
    references = [normalise(answer.text) for answer in question.answers]
    if has_null:
        references = [reference for reference in references if reference] or [""]
    exact = max(float(predicted == reference) for reference in references)
    return exact, max(token_f1(predicted, reference, float(has_null)) for reference in references)


def evaluate(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    dataset: str,
    null_gaps: Mapping[str, float] | None = None,
    threshold: float = 0.0,
) -> dict[str, float]:
    """All that the official script reports, in percent.

    Args:
        questions: The questions of the split.
        predictions: Answer by question id; ids that are not asked for are ignored.
        dataset: `squad_v1` or `squad_v2`.
        null_gaps: v2.0 only: by id, how much the model prefers "no answer". Where it is above the threshold
            the prediction counts as empty. Give the best non-empty predictions with it.
        threshold: See there; 0 suits differences of logits.

    Returns:
        exact, f1 and total; for v2.0 also HasAns_ and NoAns_ of each where there are such questions, and
        with null_gaps best_exact, best_exact_thresh, best_f1 and best_f1_thresh.

    Raises:
        UserError: If there is no question, or a prediction of v2.0 is missing (in v1.1 that scores 0), or
            null_gaps come with v1.1 or lack an id.
    """
    has_null = find_source(dataset).has_null
    _check(questions, predictions, null_gaps, has_null)
    raw = {
        q.id: score_question(q, predictions[q.id], has_null) if q.id in predictions else (0.0, 0.0) for q in questions
    }
    scores = raw if null_gaps is None else _with_null(questions, raw, null_gaps, threshold)
    report = _summary([scores[q.id] for q in questions])
    if has_null:
        for prefix, impossible in (("HasAns", False), ("NoAns", True)):
            part = [scores[q.id] for q in questions if q.impossible == impossible]
            report |= {f"{prefix}_{key}": value for key, value in _summary(part).items()} if part else {}
    if null_gaps is not None:
        for column, key in enumerate(("exact", "f1")):
            column_scores = {name: pair[column] for name, pair in raw.items()}
            best = best_threshold(questions, predictions, column_scores, null_gaps)
            report[f"best_{key}"], report[f"best_{key}_thresh"] = best
    return report


def best_threshold(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_gaps: Mapping[str, float],
) -> tuple[float, float]:
    """The best mean score in percent that a threshold reaches, and the lowest threshold that does.

    As officially, from "no answer" to everything, each question in the order of its gap is then answered
    after all. That start, if it stays best, comes with threshold 0, and questions with equal gaps count
    one by one, although no threshold can tell them apart.
    """
    answerable = {q.id: not q.impossible for q in questions}
    current = best = float(sum(q.impossible for q in questions))
    threshold = 0.0
    for name in sorted(null_gaps, key=null_gaps.__getitem__):
        if name not in answerable:
            continue
        current += scores[name] if answerable[name] else -float(bool(predictions[name]))
        if current > best:
            best, threshold = current, null_gaps[name]
    return 100.0 * best / len(questions), threshold


def _check(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    null_gaps: Mapping[str, float] | None,
    has_null: bool,
) -> None:
    if not questions:
        raise UserError("there are no questions to score; give a split with at least one")
    if null_gaps is not None and not has_null:
        raise UserError("null_gaps belong to squad_v2: every question of squad_v1 has an answer; leave them out")
    wanted = {"predictions": predictions, "null_gaps": null_gaps} if has_null else {}
    for key, values in wanted.items():
        missing = [] if values is None else [q.id for q in questions if q.id not in values]
        if missing:
            raise UserError(f"{key} lack {len(missing)} questions, such as {missing[0]!r}; give one for each question")


def _with_null(
    questions: Sequence[Question],
    scores: Mapping[str, tuple[float, float]],
    null_gaps: Mapping[str, float],
    threshold: float,
) -> dict[str, tuple[float, float]]:
    empty = {q.id: float(q.impossible) for q in questions}
    return {name: (score, score) if null_gaps[name] > threshold else scores[name] for name, score in empty.items()}


def _summary(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    exact, f1 = (100.0 * sum(column) / len(scores) for column in zip(*scores, strict=True))
    return {"exact": exact, "f1": f1, "total": len(scores)}
