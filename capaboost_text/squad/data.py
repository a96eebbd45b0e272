"""SQuAD v1.1 and v2.0 as checked questions, from the official JSON files or from the hub."""

from __future__ import annotations

import json
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from capaboost_core.errors import UserError, reason_of, shown
from capaboost_text.hub import load_from_hub
from capaboost_text.table_file import check_characters

# One entry of SQuAD as a checked question: every fault is named with its place in the file.


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


class Source(NamedTuple):
    """A release of SQuAD: the version in its file names, its name on the hub, whether answers may be absent."""

    version: str
    hub: str
    has_null: bool


DATASETS = {
    "squad_v1": Source("v1.1", "rajpurkar/squad", False),
    "squad_v2": Source("v2.0", "rajpurkar/squad_v2", True),
}
OTHERWISE = "set --data-dir to a folder with the JSON files"
HUB_SPLITS = {"train": "train", "dev": "validation"}


def load_squad(dataset: str, split: str, data_dir: str | Path | None = None) -> list[Question]:
    """Read a split (`train` or `dev`) from a folder with the official JSON files, or else from the hub.

    Raises:
        UserError: If the data set or split is unknown, the data cannot be had, or an entry is malformed.
    """
    source = find_source(dataset)
    if split not in HUB_SPLITS:
        raise UserError(f"split is {split!r}; type one of: {', '.join(HUB_SPLITS)}")
    if data_dir is not None:
        return read_squad(find_file(dataset, split, data_dir), dataset)
    place = f"{source.hub} ({split})"
    rows = load_from_hub(source.hub, split=HUB_SPLITS[split], otherwise=OTHERWISE)
    entries = ((f"{place}, row {i}", row) for i, row in enumerate(rows))
    return _collect(place, (make_question(where, _from_hub(where, row), source.has_null) for where, row in entries))


def find_source(dataset: str) -> Source:
    """The release behind a name.

    Raises:
        UserError: If the name is unknown.
    """
    if dataset not in DATASETS:
        raise UserError(f"dataset is {dataset!r}; type one of: {', '.join(DATASETS)}")
    return DATASETS[dataset]


def find_file(dataset: str, split: str, data_dir: str | Path) -> Path:
    """The file of a split: `dev-v1.1.json` and so on, or the only one that begins so, as `train-v1.1-part.json`.

    Raises:
        UserError: If there is no such file, or several.
    """
    stem = f"{split}-{find_source(dataset).version}"
    official = Path(data_dir) / f"{stem}.json"
    if os.path.isfile(official):
        return official
    found = sorted(Path(data_dir).glob(f"{stem}*.json")) if os.path.isdir(data_dir) else []
    if not found:
        raise UserError(f"{official} does not exist; put it there, or leave the folder out to load it from the hub")
    if len(found) > 1:
        raise UserError(f"{data_dir} holds {', '.join(p.name for p in found)}; name the one to use {official.name}")
    return found[0]


def read_squad(path: str | Path, dataset: str) -> list[Question]:
    """Read one file in the official layout.

    Raises:
        UserError: If the file cannot be read, or an entry is malformed; it names file, article, paragraph
            and question by their indices from 0, and what is wrong.
    """
    source = find_source(dataset)
    content = as_mapping(str(path), _read_json(path))
    for name, other in DATASETS.items():
        if name != dataset and str(content.get("version", "")).removeprefix("v") == other.version.removeprefix("v"):
            raise UserError(
                f"{path} is SQuAD {other.version}; set dataset to {name}, or give the {source.version} file"
            )
    entries = _walk(str(path), content)
    return _collect(str(path), (make_question(where, entry, source.has_null) for where, entry in entries))


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of a SQuAD JSON file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; fetch the file again") from error
    except (ValueError, RecursionError) as error:  # the first also where a number has thousands of digits
        raise UserError(f"{path} is not JSON: {reason_of(error)}; fetch the file again") from error


def _walk(path: str, content: dict) -> Iterator[tuple[str, dict]]:
    """Every question's entry, with its paragraph's context put in, and its place in words."""
    for a, article in enumerate(as_list(path, content, "data")):
        where = f"{path}, article {a}"
        for p, paragraph in enumerate(as_list(where, as_mapping(where, article), "paragraphs")):
            where = f"{path}, article {a}, paragraph {p}"
            context = as_text(where, as_mapping(where, paragraph), "context")
            for q, entry in enumerate(as_list(where, paragraph, "qas")):
                at = f"{where}, question {q}"
                yield at, {**as_mapping(at, entry), "context": context}


def _collect(place: str, questions: Iterator[Question]) -> list[Question]:
    known: dict[str, Question] = {}
    for question in questions:
        if question.id in known:
            raise UserError(f"{place}: the id {shown(question.id)} occurs twice; give each question an id of its own")
        known[question.id] = question
    if not known:
        raise UserError(f"{place} holds no questions; give a file with at least one")
    return list(known.values())


def _from_hub(where: str, row: Any) -> dict:
    """The hub keeps a question's answers as two lists, and no is_impossible."""
    answers = as_mapping(where, as_mapping(where, row).get("answers"))
    texts, starts = as_list(where, answers, "text"), as_list(where, answers, "answer_start")
    if len(texts) != len(starts):
        raise UserError(f"{where}: there are {len(texts)} texts but {len(starts)} starts; each answer needs both")
    listed = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    return {**row, "answers": listed}
