"""A SQuAD run: model and data from its settings."""

from __future__ import annotations

from accelerate import Accelerator

from capaboost.runs.settings import SquadRun
from capaboost.training.experiment import TaskSetup
from capaboost_text.encode import halve, load_tokenizer, take
from capaboost_text.encoders import from_pretrained
from capaboost_text.squad.data import load_squad
from capaboost_text.squad.task import QuestionAnswering, QuestionSplit
from capaboost_text.squad.windows import make_windows

SPLIT_NOTES = {"select": "half of dev selects the epoch, tested on the other half", "test": "tested on dev"}


def prepare(run: SquadRun, accelerator: Accelerator) -> TaskSetup:
    """Model and task of a run; nothing is written.

    Raises:
        UserError: If the model or the data cannot be had or do not fit each other.
    """
    data = run.data
    train = take(load_squad(data.dataset, "train", data.dir), data.max_train_rows)
    dev = take(load_squad(data.dataset, "dev", data.dir), data.max_dev_rows)
    selected, tested = halve(dev) if data.protocol == run.selecting else ([], dev)
    tokenizer = load_tokenizer(run.model.name, data.max_length)
    windows = make_windows(train, tokenizer, data.max_length, data.stride, offsets=False)
    selection, test = (
        QuestionSplit(questions, make_windows(questions, tokenizer, data.max_length, data.stride))
        for questions in (selected, tested)
    )
    model = from_pretrained(run.model.name, "question-answering", run.adapter, ignore_mismatched_sizes=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    task = QuestionAnswering(
        accelerator,
        data.dataset,
        tokenizer,
        windows,
        selection if selected else None,
        test,
        run.train.batch_size,
        run.train.seed,
    )
    note = f"{len(train):,} training and {len(dev):,} dev questions; {SPLIT_NOTES[data.protocol]}"
    return TaskSetup(model, task, data.dataset, metric="f1", select_by="selection_f1", split_note=note)
