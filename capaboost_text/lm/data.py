"""Texts of one's own as rows of tokens for a language model, and rows packed into blocks.

A file is plain text or JSON lines. The lines have the names of TRL's dataset formats, in which most such files exist:
{"text"} and {"messages"} train on every token, {"prompt", "completion"} on the completion alone; both of the latter
may be lists of messages. Plain text is one document: a blank line ends a paragraph in most texts, and a model that
sees a paragraph at a time would learn nothing of how they follow each other. Documents of their own are JSON lines.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from capaboost_core.errors import UserError, reason_of, shown
from capaboost_text.encode import Example, encode, halve, permutation
from capaboost_text.table_file import check_characters, opened, read_json_rows

IGNORED = -100  # the label of a token that is not predicted, as torch's cross-entropy and transformers have it
FORMATS = (("messages",), ("prompt", "completion"), ("text",))
JSON_LINES = (".jsonl", ".json", ".ndjson")
TABLES = (".csv", ".tsv", ".parquet", ".arrow")


class Document(NamedTuple):
    """A text or a list of messages, and what stands before it and is not predicted.

    Attributes:
        where: Its file and line, for messages.
    """

    where: str
    content: str | list[Any]
    prompt: str | list[Any] | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """A row of the model's input: one document, a part of one, or several that do not see each other.

    Attributes:
        input_ids: (n,) token ids.
        labels: (n,) the same, or IGNORED of a token that is not predicted; so is the first of a document.
        positions: (n,) positions, from 0 in each document.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    token_type_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def predicted(self) -> int:
        """How many tokens are predicted."""
        return int((self.labels != IGNORED).sum())


def read_documents(path: Path) -> list[Document]:
    """The documents of a file.

    Raises:
        UserError: If the file cannot be read or is empty, or a line is malformed; it names the line.
    """
    if path.suffix.lower() in JSON_LINES:
        return _json_documents(path)
    if path.suffix.lower() in TABLES:
        raise UserError(f"{path} is a table; save its texts as JSON lines (.jsonl), each an object with text")
    with opened(path) as file:
        text = file.read()
    if not text.strip():
        raise UserError(f"{path} is empty; give a file with text")
    return [Document(str(path), text.replace("\r\n", "\n"))]


def _json_documents(path: Path) -> list[Document]:
    names = _format(path)
    documents = []
    for line, cells in read_json_rows(path, names):
        where = f"{path}, line {line}"
        for name, value in zip(names, cells, strict=True):
            _check(where, name, value)
        if type(cells[0]) is not type(cells[-1]):
            raise UserError(f"{where}: of prompt and completion one is text and one a list of messages; make both one")
        documents.append(Document(where, cells[-1], cells[0] if len(cells) == 2 else None))
    return documents


def _format(path: Path) -> tuple[str, ...]:
    """The names that the first line has."""
    with opened(path) as file:
        first = next((line for line in file if line.strip()), "")
    if first.lstrip().startswith("["):
        raise UserError(f"{path} is one JSON list; save it as JSON lines, each an object")
    try:
        names = json.loads(first) if first else {}
    except (ValueError, RecursionError):
        names = None  # reading the rows says which line it is
    if not isinstance(names, dict):
        return FORMATS[-1]
    found = next((each for each in FORMATS if set(each) <= names.keys()), None)
    if first and found is None:
        known = "text, prompt with completion, or messages"
        raise UserError(f"{path}: its lines have {shown(', '.join(names))}; rename what they hold to {known}")
    if names.get("tools"):
        raise UserError(f"{path}: its lines have tools, which are not read; give text, with the template applied")
    return found or FORMATS[-1]


def _check(where: str, name: str, value: Any) -> None:
    if isinstance(value, list) and name != "text":
        for message in value:
            content = message.get("content") if isinstance(message, dict) else None
            if not isinstance(content, str) or not isinstance(message.get("role"), str):
                raise UserError(f"{where}: each message of {name} must be an object with the texts role and content")
            check_characters(where, name, content)
    elif isinstance(value, str) and name != "messages":
        check_characters(where, name, value)
    else:
        kind = "a list of messages" if name == "messages" else "text"
        raise UserError(f"{where}: {name} is {shown(value)} and not {kind}; correct it, or leave the line out")
    if not value if isinstance(value, list) or name == "prompt" else not value.strip():
        raise UserError(f"{where}: {name} is empty; fill it in, or leave the line out")


class Encoder:
    """Makes rows of tokens of documents, without packing.

    A text begins with what the tokenizer puts before any (such as <bos>) and ends with its end token, neither of which
    is doubled where the text itself holds it. One that is longer than `max_length` goes on in further rows, which
    begin likewise. A completion or a conversation is cut to its first `max_length` tokens instead, since what follows
    would lack its prompt.

    Attributes:
        cut: How many documents were cut.
        lost: How many have no token to predict, such as one whose prompt takes all the room.

    Args:
        tokenizer: The model's.
        max_length: Tokens of the longest row.

    Raises:
        UserError: If the tokenizer has no end token.
    """

    def __init__(self, tokenizer: Any, max_length: int, is_shown: bool = False):
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no end token; name one of its tokens as eos_token in "
                "its tokenizer_config.json"
            )
        self.tokenizer, self.max_length, self.is_shown = tokenizer, max_length, is_shown
        letter = tokenizer("a", return_special_tokens_mask=True)  # which may be an unknown token, special as well
        count = sum(takewhile(bool, letter["special_tokens_mask"]))
        self.begin = letter["input_ids"][:count]
        self.cut = self.lost = 0

    def rows(self, documents: Sequence[Document]) -> list[list[Block]]:
        """The rows of each document; a document of which nothing is predicted has none.

        Raises:
            UserError: If there are messages, and the tokenizer has no template for them.
        """
        texts = [self._rendered(document) for document in documents]
        bodies = self._ids([text for text, _ in texts])
        prompts = iter(self._ids([prompt for _, prompt in texts if prompt is not None]))
        made = []
        for document, (_, prompt), body in zip(documents, texts, bodies, strict=True):
            is_chat, given = not isinstance(document.content, str), next(prompts) if prompt is not None else []
            begin, end = list[int](), list[int]()
            if not is_chat:
                begin, body, given = self.begin, self._bare(body), self._bare(given)
                end = [self.tokenizer.eos_token_id] * (body[-1:] != [self.tokenizer.eos_token_id])
            rows = self._split(begin, [*body, *end], _common(given, body), is_chat or prompt is not None)
            made.append([row for row in rows if row.predicted])
        self.lost += made.count([])
        return made

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts that are to be continued."""
        return [[*self.begin, *self._bare(ids)] for ids in self._ids(texts)]

    def _bare(self, ids: list[int]) -> list[int]:
        """The tokens of a text without `begin`, should the text itself hold it."""
        return ids[len(self.begin) :] if ids[: len(self.begin)] == self.begin else ids

    def _split(self, begin: list[int], body: list[int], given: int, cut: bool) -> Iterator[Block]:
        room = max(1, self.max_length - len(begin))
        self.cut += cut and len(body) > room
        for at in range(0, room if cut else len(body), room):
            ids = np.array([*begin, *body[at : at + room]], np.int32)
            labels = ids.copy()
            labels[: max(1, len(begin) + max(0, given - at))] = IGNORED
            yield Block(ids, labels, np.arange(len(ids), dtype=np.int32))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        examples = [Example(text, None, 0) for text in texts]
        return [row.input_ids.tolist() for row in encode(examples, self.tokenizer, None, self.is_shown, special=False)]

    def _rendered(self, document: Document) -> tuple[str, str | None]:
        """The complete text, and its part that is the prompt."""
        content, prompt = document.content, document.prompt
        if isinstance(content, str):
            assert not isinstance(prompt, list)  # reading refuses it
            return (prompt or "") + content, prompt
        assert not isinstance(prompt, str)
        text = self._templated(document.where, [*(prompt or []), *content])
        if not prompt:
            return text, None
        alone = self._templated(document.where, prompt)
        shared = text[: _common(alone, text)]
        if shared != alone and prompt[-1]["content"].strip() not in shared:
            raise UserError(
                f"{document.where}: the template of {self.tokenizer.name_or_path} writes this prompt otherwise before "
                "its completion, so that parts of it would be predicted; give prompt and completion as text"
            )
        return text, self._templated(document.where, prompt, add_generation_prompt=True)

    def _templated(self, where: str, messages: list[Any], **settings: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **settings)
        except Exception as error:  # a template is a program of its own
            raise UserError(
                f"{where}: the tokenizer of {self.tokenizer.name_or_path} makes no text of these messages "
                f"({reason_of(error)}); give text, or the tokenizer of a model for conversations"
            ) from error


def _common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many tokens or characters are alike at the beginning; a token that reaches over its end is predicted."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


class Splits(NamedTuple):
    """Rows to train on, to select on (none where nothing is selected), and to test on."""

    train: list[Block]
    selection: list[Block]
    test: list[Block]

    @property
    def repeated(self) -> int:
        """How many held-out rows equal one to train on."""
        trained = {row.input_ids.tobytes() for row in self.train}
        return sum(row.input_ids.tobytes() in trained for row in (*self.selection, *self.test))


def split(
    encoder: Encoder, file: Path, validation: Path | None, test: Path | None, selects: bool, share: float, seed: int
) -> Splits:
    """The rows of the splits.

    Without a file for validation a share of the documents of the training file is held out, or of the rows where it is
    one document. Without one to test on, half of that selects and half tests, if the protocol selects, else all tests.

    Raises:
        UserError: If a file is malformed, has too few documents to be split, or holds out what is trained on alone.
    """
    train = _units(encoder, file)
    halved = selects and test is None
    least = 2 if halved else 1
    if validation is None:
        order, count = permutation(len(train), seed), max(least, round(share * len(train)))
        if len(train) <= count:
            raise UserError(f"{file} is too short to hold out {share:g} of it; give more text, or --validation FILE")
        train, held = [train[i] for i in sorted(order[count:])], [train[i] for i in sorted(order[:count])]
    else:
        held = _units(encoder, validation)
        if len(held) < least:
            raise UserError(f"{validation} is too short to be halved; give more text, or pass --test FILE too")
    selected, tested = halve(held) if halved else (held if selects else [], held)
    if test is not None:
        tested = _units(encoder, test)
    splits = Splits(*([row for unit in units for row in unit] for units in (train, selected, tested)))
    if splits.repeated == len(splits.selection) + len(splits.test):
        raise UserError(f"all held-out texts are among those of {file} to train on; give others as --validation FILE")
    return splits


def _units(encoder: Encoder, file: Path) -> list[list[Block]]:
    """What is held out as one: a document, or a row of a file that is one document."""
    documents = encoder.rows(read_documents(file))
    units = [rows for rows in documents if rows]
    if not units:
        raise UserError(f"{file} has no row with a token to predict; give longer texts, or raise data.max_length")
    return [[row] for row in units[0]] if len(documents) == 1 else units


def pack(rows: Sequence[Block], size: int) -> list[Block]:
    """The rows in blocks of at most `size` tokens: longest first, each into the fullest block that has room.

    This is best-fit decreasing, which needs at most 11/9 of the fewest blocks (Johnson, 1974). Rows are never cut.
    """
    free: list[tuple[int, int]] = []  # tokens left, and the number of the block, in rising order
    blocks: list[list[Block]] = []
    for row in sorted(rows, key=len, reverse=True):
        at = bisect_left(free, (len(row), -1))
        left, number = free.pop(at) if at < len(free) else (size, len(blocks))
        if number == len(blocks):
            blocks.append([])
        blocks[number].append(row)
        insort(free, (left - len(row), number))
    return [_joined(block) for block in blocks]


def _joined(rows: list[Block]) -> Block:
    return Block(
        *(np.concatenate([getattr(row, name) for row in rows]) for name in ("input_ids", "labels", "positions"))
    )
