"""One entry of SQuAD as a checked question: every fault is named with its place in the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from capaboost_core.errors import UserError, shown
from capaboost_text.table_file import check_characters


class Reference(NamedTuple):
    """A reference answer: context[start : start + len(text)] is the text."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """One question on one paragraph, with its reference answers; none if the paragraph does not answer it."""

    id: str
    question: str
    context: str
    answers: tuple[Reference, ...]
    impossible: bool


def make_question(where: str, entry: dict, has_null: bool) -> Question:
    """Check one entry that carries id, question, context, answers and perhaps is_impossible.

    Args:
        where: Its place in words, such as `dev.json, article 0, paragraph 1, question 2`.
        entry: The entry, with its paragraph's context.
        has_null: Whether the data set has questions without an answer (v2.0).

    Raises:
        UserError: If a field is missing or wrong, or an answer is not in the context where it says.
    """
    name, question = as_text(where, entry, "id"), as_text(where, entry, "question", blank=True)
    context = as_text(where, entry, "context")
    listed = as_list(where, entry, "answers")
    answers = tuple(_reference(f"{where}, answer {i}", answer, context) for i, answer in enumerate(listed))
    impossible = entry.get("is_impossible", has_null and not answers)
    if not isinstance(impossible, bool):
        raise UserError(f"{where}: is_impossible is {shown(impossible)}; it must be true or false")
    if not has_null and (impossible or not answers):
        raise UserError(f"{where} has no answer, which SQuAD v1.1 does not allow; set dataset to squad_v2")
    if impossible == bool(answers):
        state = str(impossible).lower()
        raise UserError(
            f"{where}: is_impossible is {state}, but there are {len(answers)} answers; correct one of them"
        )
    return Question(name, question, context, answers, impossible)


def _reference(where: str, answer: Any, context: str) -> Reference:
    text, start = as_text(where, as_mapping(where, answer), "text"), answer.get("answer_start")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise UserError(f"{where}: answer_start is {shown(start)}; it must be a whole number of 0 or more")
    found = context[start : start + len(text)]
    if found != text:
        there = f"the context has {shown(found)} at {shown(start)}"
        raise UserError(f"{where}: {there}, not the answer {shown(text)}; correct answer_start")
    return Reference(text, start)


def as_mapping(where: str, value: Any) -> dict:
    """The value, if it is a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is a {type(value).__name__}; it must be a JSON object")
    return value


def as_list(where: str, entry: dict, key: str) -> list:
    """The entry's list under a key."""
    if not isinstance(entry.get(key), list):
        raise UserError(f"{where}: {key} is {_kind(entry, key)}; it must be a list")
    return entry[key]


def as_text(where: str, entry: dict, key: str, blank: bool = False) -> str:
    """The entry's text under a key; only where `blank` is set may it be empty."""
    value = entry.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is {_kind(entry, key)}; it must be text")
    if not blank and not value.strip():
        raise UserError(f"{where}: {key} is empty; it must hold some text")
    check_characters(where, key, value)
    return value


def _kind(entry: dict, key: str) -> str:
    return f"a {type(entry[key]).__name__}" if key in entry else "missing"
