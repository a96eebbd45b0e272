"""Texts or pairs as rows of tokens: a model's tokenizer, the order of rows, batches and padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer

from capaboost_core.errors import UserError, is_no_memory, reason_of, shown
from capaboost_text.hub import reach_hub

SPLIT_SEED = 42  # the published one; the order in which rows go to splits does not depend on the run's seed
GROUP = 50  # batches among whose rows lengths are sorted: the usual compromise of padding and chance
CHUNK = 1000  # rows that one call of the tokenizer gets
# Types of models whose position ids begin after that of the padding.
AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "roberta-prelayernorm")

Row = TypeVar("Row")


def permutation(size: int, seed: int = SPLIT_SEED) -> list[int]:
    """A fixed permutation of range(size), drawn as in the code behind Table 2 of arXiv 2407.01320."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def take(rows: Sequence[Row], count: int | None) -> list[Row]:
    """The first `count` rows of the fixed order, always the same ones; all rows, as they stand, for None."""
    return list(rows) if count is None else [rows[i] for i in permutation(len(rows))[:count]]


def halve(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The halves of the fixed order: the first to select on, the second to test on."""
    order, half = permutation(len(rows)), len(rows) // 2
    return [rows[i] for i in order[:half]], [rows[i] for i in order[half:]]


class Example(NamedTuple):
    """One or two texts, and the index of the class or the number to predict."""

    text: str
    pair: str | None
    label: int | float


class Tokens(Protocol):
    """A row of tokens without padding.

    Attributes:
        input_ids: (n,) token ids.
        token_type_ids: (n,) segment ids, for a model that takes them.
    """

    @property
    def input_ids(self) -> np.ndarray: ...
    @property
    def token_type_ids(self) -> np.ndarray | None: ...
    def __len__(self) -> int: ...


def pad(rows: Sequence[Tokens], tokenizer: Any, multiple: int = 1) -> dict[str, Tensor]:
    """A model's inputs, padded to the longest row on the tokenizer's side.

    Args:
        rows: At least one.
        tokenizer: The one that made them.
        multiple: Round the length up to a multiple of this.

    Returns:
        input_ids, attention_mask and perhaps token_type_ids, (rows, length) each.
    """
    length = -(-max(map(len, rows)) // multiple) * multiple
    left = tokenizer.padding_side == "left"

    def stack(values: list[np.ndarray], fill: int) -> Tensor:
        table = np.full((len(values), length), fill, np.int64)
        for padded, row in zip(table, values, strict=True):
            padded[slice(length - len(row), None) if left else slice(len(row))] = row
        return torch.from_numpy(table)

    inputs = {"input_ids": stack([row.input_ids for row in rows], tokenizer.pad_token_id)}
    inputs["attention_mask"] = stack([np.ones(len(row), np.int64) for row in rows], 0)
    if rows[0].token_type_ids is not None:
        types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
        inputs["token_type_ids"] = stack(types, tokenizer.pad_token_type_id)
    return inputs


def train_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """All row indices once, in an order that depends on (seed, epoch) only.

    The rows are shuffled, sorted by length within groups of 50 batches, cut, and the batches shuffled.
    Only the last of the batches, wherever it ends up, may be smaller.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    groups = [order[at : at + GROUP * batch_size] for at in range(0, len(order), GROUP * batch_size)]
    ordered = np.concatenate([group[np.argsort(lengths[group], kind="stable")] for group in groups])
    batches = [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def token_batches(lengths: np.ndarray, rows: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """The given rows, longest first, in batches of at most so many tokens, padding included, or of one row."""
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    at = 0
    while at < len(ordered):
        count = max(1, tokens // max(1, int(lengths[ordered[at]])))
        yield ordered[at : at + count]
        at += count


@dataclass(frozen=True, eq=False)
class Encoded:
    """One text or pair.

    Attributes:
        input_ids: (n,) token ids, special ones included.
        token_type_ids: (n,) segment ids, for a model that takes them.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None

    def __len__(self) -> int:
        return len(self.input_ids)


def load_tokenizer(name_or_path: str | Path, max_length: int) -> Any:
    """The model's fast tokenizer.

    Raises:
        UserError: If it cannot be had or has no vocabulary, or the model reads fewer than `max_length` tokens.
    """
    try:
        with reach_hub(name_or_path):
            config = AutoConfig.from_pretrained(name_or_path)
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
        most = min(tokenizer.model_max_length, readable_tokens(config))
    except Exception as error:  # transformers fails in many ways on damaged files
        if is_no_memory(error):
            raise
        is_path = str(name_or_path).startswith((".", "/", "~"))  # which no name on the hub does
        missing = is_path and not Path(name_or_path).is_dir()
        reason = "there is no such folder" if missing else reason_of(error)
        raise UserError(
            f"cannot load the tokenizer of {name_or_path} ({reason}); give a folder with "
            "config.json and tokenizer.json, or a hub name with a network"
        ) from error
    if not any(any(map(str.isalnum, word)) for word in words):  # what transformers makes of a folder without its files
        raise UserError(
            f"the tokenizer of {name_or_path} has no vocabulary; add tokenizer.json or what else the model's "
            "tokenizer was saved as"
        )
    _give_padding(tokenizer, config, name_or_path)
    if max_length > most:
        raise UserError(f"data.max_length is {max_length}, but {name_or_path} reads {most} tokens; set {most} or less")
    return tokenizer


def _give_padding(tokenizer: Any, config: Any, name_or_path: str | Path) -> None:
    """A tokenizer without a padding token takes the configuration's if it has that one (some say -1), or as decoders
    do its end token: the attention mask leaves it out.

    Raises:
        UserError: If there is neither.
    """
    if tokenizer.pad_token_id is not None:
        return
    number = getattr(config, "pad_token_id", None)
    has = number is not None and 0 <= number < len(tokenizer)
    token = tokenizer.convert_ids_to_tokens(number) if has else tokenizer.eos_token
    if token is None:
        raise UserError(
            f"the tokenizer of {name_or_path} has no padding token; name one of its tokens as pad_token in its "
            "tokenizer_config.json"
        )
    tokenizer.pad_token = token


def readable_tokens(config: Any) -> int:
    """The longest input that the position embeddings permit, by the configuration."""
    if not getattr(config, "position_biased_input", True):  # DeBERTa-v2/v3 has relative positions only
        return 10**9
    offset = config.pad_token_id + 1 if config.model_type in AFTER_PADDING else 0
    return getattr(config, "max_position_embeddings", 10**9) - offset


def check_fit(model: nn.Module, tokenizer: Any, rows: Iterable[Tokens]) -> None:
    """Refuse rows that have no token, a token without an embedding, or more tokens than the model has positions.

    Raises:
        UserError: It says which row or token.
    """
    name, largest, longest = tokenizer.name_or_path, tokenizer.pad_token_id, 0
    for number, row in enumerate(rows, 1):
        if not len(row):
            raise UserError(
                f"{name}: its tokenizer makes no token of row {number} of all that are read; leave rows out that hold "
                "nothing but characters which it drops"
            )
        largest, longest = max(largest, int(row.input_ids.max(initial=0))), max(longest, len(row))
    known = cast(Any, model).get_input_embeddings().weight.shape[0]
    if largest >= known:
        token = shown(tokenizer.convert_ids_to_tokens(largest))
        raise UserError(
            f"{name}: its tokenizer makes token {largest} ({token}), but the model's embeddings end at {known - 1}; "
            "give the tokenizer of these weights, or save the model again after resize_token_embeddings"
        )
    most = min(map(_positions, _position_embeddings(model)), default=longest)
    if longest > most:
        raise UserError(f"{name} reads {most} tokens, but a row has {longest}; set data.max_length={most} or less")


def _position_embeddings(model: nn.Module) -> list[nn.Embedding]:
    """The tables of absolute positions, by the names that transformers gives them."""
    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in ("position_embeddings", "wpe", "wpe_emb")
    ]


def _positions(table: nn.Embedding) -> int:
    """The length that a table permits: RoBERTa's family counts from the position after the padding's."""
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def encode(
    examples: Sequence[Example], tokenizer: Any, max_length: int | None, shown: bool = False, special: bool = True
) -> list[Encoded]:
    """Each example's tokens, the longer text of a pair cut first where they are too many.

    Args:
        examples: Texts or pairs.
        tokenizer: The model's.
        max_length: Tokens of the longest row, special ones included; None cuts none.
        shown: Show a bar.
        special: Add the special tokens that the tokenizer puts around a text.
    """
    settings = {"truncation": max_length is not None, "max_length": max_length, "add_special_tokens": special}
    rows: list[Encoded] = []
    with tqdm(total=len(examples), desc="tokenise", unit=" rows", leave=False, disable=None if shown else True) as bar:
        for at in range(0, len(examples), CHUNK):
            part = examples[at : at + CHUNK]
            pairs = [example.pair for example in part] if part[0].pair is not None else None
            batch = tokenizer([e.text for e in part], pairs, verbose=False, **settings)
            types = batch.get("token_type_ids", [None] * len(part))
            rows += [_encoded(ids, segments) for ids, segments in zip(batch["input_ids"], types, strict=True)]
            bar.update(len(part))
    return rows


def _encoded(ids: list[int], segments: list[int] | None) -> Encoded:
    return Encoded(np.array(ids, np.int32), None if segments is None else np.array(segments, np.int8))
