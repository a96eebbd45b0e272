"""Questions with long contexts as overlapping windows of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from capaboost_core.errors import UserError, shown
from capaboost_text.squad.data import Question

BATCH = 512  # questions tokenised in one call: enough for speed, little memory


@dataclass(frozen=True, eq=False)
class Window:
    """The question's tokens with one stretch of its context's, not padded.

    Attributes:
        question: Index of the question in the list that was tokenised.
        input_ids: (n,) token ids.
        token_type_ids: (n,) segment ids, for a model that takes them.
        cls: Index of the CLS token, which stands for "no answer here".
        start: Index of the first token of the first reference answer; `cls` where it is not wholly inside.
        end: Index of its last token, likewise.
        offsets: (n, 2) begin and end of each token in the context's characters, (-1, -1) outside of it;
            None where they were not asked for.
    """

    question: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    cls: int
    start: int
    end: int
    offsets: np.ndarray | None

    def __len__(self) -> int:
        return len(self.input_ids)


def make_windows(
    questions: Sequence[Question], tokenizer: Any, max_length: int = 384, stride: int = 128, offsets: bool = True
) -> list[Window]:
    """Cut each context into windows of at most `max_length` tokens that repeat `stride` tokens of the one before.

    The question stands whole in every window. One that leaves no more than `stride` tokens for the
    context overlaps by half of what it leaves. Where the tokenizer pads on the left, the context comes
    first, as those models were trained.

    Args:
        questions: What to tokenise; windows keep their order.
        tokenizer: A fast tokenizer of transformers.
        max_length: Tokens of a window, special ones included.
        stride: Context tokens that consecutive windows share.
        offsets: Keep each window's offsets: needed to read answers off, a waste of memory in training.

    Raises:
        UserError: If the tokenizer is not fast or has no CLS token, a length does not fit, or a question
            leaves no room for its context.
    """
    _check(tokenizer, max_length, stride)
    shared = _overlaps(questions, tokenizer, max_length, stride)
    windows: list[Window] = []
    # One call takes one stride, so runs of questions with the same one go together.
    for overlap, run in groupby(range(len(questions)), key=shared.__getitem__):
        indices = list(run)
        for at in range(0, len(indices), BATCH):
            for index, group in _encode(questions, indices[at : at + BATCH], tokenizer, max_length, overlap):
                windows += _question_windows(index, questions[index], group, tokenizer, offsets)
    return windows


def _check(tokenizer: Any, max_length: int, stride: int) -> None:
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise UserError(f"{name} cannot tell where its tokens lie in the text; load it with use_fast=True")
    if tokenizer.cls_token_id is None:
        raise UserError(f"{name} has no CLS token, which stands for `no answer`; choose a model that has one")
    for key, value, low in (("max_length", max_length, 1), ("stride", stride, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UserError(f"{key} is {value!r}; type a whole number of {low} or more")
    most = tokenizer.model_max_length
    if max_length > most:
        raise UserError(f"max_length is {max_length}, but the model reads {most} tokens; set it to {most} or less")
    if stride >= max_length:
        raise UserError(f"stride is {stride} and max_length {max_length}; windows overlap by less than their length")


def _overlaps(questions: Sequence[Question], tokenizer: Any, max_length: int, stride: int) -> list[int]:
    """Context tokens that the windows of each question share."""
    shared = []
    for at in range(0, len(questions), BATCH):
        texts = [_asked(question) for question in questions[at : at + BATCH]]
        for question, ids in zip(
            questions[at:], tokenizer(texts, add_special_tokens=False)["input_ids"], strict=False
        ):
            room = max_length - len(ids) - tokenizer.num_special_tokens_to_add(pair=True)
            if room < 1:
                raise UserError(
                    f"question {shown(question.id)} has {len(ids)} tokens, which leaves none of {max_length} "
                    f"for its context; raise max_length or drop the question"
                )
            shared.append(stride if stride < room else room // 2)
    return shared


def _asked(question: Question) -> str:
    return question.question.strip()  # a few official questions begin with dozens of spaces


def _encode(
    questions: Sequence[Question], indices: list[int], tokenizer: Any, max_length: int, overlap: int
) -> Iterator[tuple[int, list[Any]]]:
    """Each question's index with the encodings of its windows."""
    texts, contexts = [_asked(questions[i]) for i in indices], [questions[i].context for i in indices]
    context_side = _context_side(tokenizer)
    batch = tokenizer(
        *((texts, contexts) if context_side == 1 else (contexts, texts)),
        truncation="only_second" if context_side == 1 else "only_first",
        max_length=max_length,
        stride=overlap,
        padding=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    groups: list[list[Any]] = [[] for _ in indices]
    for encoding, sample in zip(batch.encodings, batch["overflow_to_sample_mapping"], strict=True):
        groups[sample].append(encoding)
    return zip(indices, groups, strict=True)


def _context_side(tokenizer: Any) -> int:
    """0 or 1: which of the pair's two texts the context is."""
    return 0 if tokenizer.padding_side == "left" else 1


def _question_windows(
    index: int, question: Question, encodings: list[Any], tokenizer: Any, keep: bool
) -> Iterator[Window]:
    spans = [_context_spans(encoding, _context_side(tokenizer)) for encoding in encodings]
    inside = np.concatenate(spans)
    inside = inside[inside[:, 0] >= 0]
    whole = (int(inside[:, 0].min()), int(inside[:, 1].max())) if len(inside) else (0, 0)
    segments = "token_type_ids" in tokenizer.model_input_names
    for encoding, span in zip(encodings, spans, strict=True):
        ids = np.array(encoding.ids, np.int32)
        # The context itself may spell out the token, such as [CLS].
        cls = int(np.argmax((ids == tokenizer.cls_token_id) & np.array(encoding.special_tokens_mask, bool)))
        start, end = _positions(question, span, whole) or (cls, cls)
        types = np.array(encoding.type_ids, np.int8) if segments else None
        yield Window(index, ids, types, cls, start, end, span if keep else None)


def _context_spans(encoding: Any, side: int) -> np.ndarray:
    spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    inside = np.array([which == side for which in encoding.sequence_ids], bool)
    spans[~inside] = -1
    return spans


def _positions(question: Question, spans: np.ndarray, whole: tuple[int, int]) -> tuple[int, int] | None:
    """First and last token of the first reference, or None where the window does not hold all of it.

    `whole` is where the first token of the context begins and its last one ends: a tokenizer may drop
    characters at either edge, and an answer that has them is inside all the same.
    """
    tokens = np.flatnonzero(spans[:, 0] >= 0)
    if not question.answers or not len(tokens):
        return None
    answer = question.answers[0]
    begin = max(answer.start, whole[0])
    stop = min(answer.start + len(answer.text), whole[1])
    inside = spans[tokens]
    if inside[0, 0] > begin or inside[-1, 1] < stop:
        return None
    held = tokens[(inside[:, 1] > begin) & (inside[:, 0] < stop)]
    return (int(held[0]), int(held[-1])) if len(held) else None
