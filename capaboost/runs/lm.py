"""A run of a language model on a file of texts: model and data from its settings."""

from __future__ import annotations

import warnings
from pathlib import Path

from accelerate import Accelerator

from capaboost.runs.settings import LanguageRun
from capaboost.training.experiment import TaskSetup
from capaboost_core.errors import UserError
from capaboost_text.encode import load_tokenizer
from capaboost_text.encoders import from_pretrained
from capaboost_text.lm.data import Encoder, Splits, pack, split
from capaboost_text.lm.task import LanguageModeling


def prepare(run: LanguageRun, accelerator: Accelerator) -> TaskSetup:
    """Model and task of a run; nothing is written.

    Raises:
        UserError: If the model or the data cannot be had or do not fit each other.
    """
    data, train = run.data, run.train
    validation, test = (Path(name) if name else None for name in (data.validation, data.test))
    for path in filter(None, (Path(data.file), validation, test)):
        if not path.is_file():  # before a model is loaded, which may take a download
            raise UserError(f"cannot read {path}, which is no file; give plain text, or JSON lines (.jsonl)")
    tokenizer = load_tokenizer(run.model.name, data.max_length)
    encoder = Encoder(tokenizer, data.max_length, accelerator.is_main_process)
    selects = data.protocol == run.selecting
    splits = split(encoder, Path(data.file), validation, test, selects, data.holdout, data.split_seed)
    remarks = _remarks(splits, encoder)
    for remark in remarks if accelerator.is_main_process else ():
        warnings.warn(remark, stacklevel=2)
    if data.packing:
        splits = Splits(*(pack(rows, data.max_length) for rows in splits))
    model = from_pretrained(run.model.name, run.head, run.adapter)
    return TaskSetup(
        model=model,
        task=LanguageModeling(accelerator, tokenizer, splits, data.packing, train.batch_size, train.seed),
        name=Path(data.file).stem,
        metric="perplexity",
        select_by="selection_perplexity",
        split_note="; ".join([*_note(run, splits, encoder), *remarks]),
        inference={"kind": "language", "model": run.model.to_dict(), "classes": [], "max_length": data.max_length},
    )


def _remarks(splits: Splits, encoder: Encoder) -> list[str]:
    """What is seldom meant to be so."""
    repeated, lost, length = splits.repeated, encoder.lost, encoder.max_length
    remarks = [f"{repeated:,} held-out rows are trained on as well" * bool(repeated)]
    remarks.append(f"{lost:,} rows left out, of which nothing is predicted in {length} tokens" * bool(lost))
    return list(filter(None, remarks))


def _note(run: LanguageRun, splits: Splits, encoder: Encoder) -> list[str]:
    """How many tokens the splits predict, and where they come from."""
    data = run.data
    train, selection, test = (f"{sum(row.predicted for row in rows):,} tokens" for rows in splits)
    parts = [f"{train} of {data.file} train", f"{selection} select the epoch" * bool(splits.selection), f"{test} test"]
    held = data.validation or f"{data.holdout:.0%} of {data.file} by seed {data.split_seed}"
    if splits.selection or not data.test:
        parts.append(f"held out: {held}")
    parts.append(f"tested on: {data.test}" * bool(data.test))
    parts.append(f"{encoder.cut:,} rows cut to {data.max_length} tokens" * bool(encoder.cut))
    return list(filter(None, parts))
