"""A run on GLUE or on a user's own data: model and data from its settings."""

from __future__ import annotations

from accelerate import Accelerator

from capaboost.runs.settings import GlueRun
from capaboost.training.experiment import TaskSetup
from capaboost_text.encode import load_tokenizer
from capaboost_text.encoders import from_pretrained
from capaboost_text.glue.data import splits
from capaboost_text.glue.own_data import own_splits, own_task
from capaboost_text.glue.task import Classification
from capaboost_text.glue.tasks import GlueTask, find_task

SPLIT_NOTES = {
    "propetl": "half of dev, or 1,000 training rows, select the epoch; tested on the rest of dev",
    "adalora": "tested on dev, nothing selected",
    "select": "trained on {data.train}, {data.selection} selects the epoch, tested on {test}",
    "test": "trained on {data.train}, tested on {test}, nothing selected",
}


def prepare(run: GlueRun, accelerator: Accelerator) -> TaskSetup:
    """Model and task of a run; nothing is written.

    Raises:
        UserError: If the model or the data cannot be had or do not fit each other.
    """
    data = run.data
    task = own_task(data) if data.is_own else find_task(data.task)
    parts = own_splits(data) if data.is_own else splits(data.task, data.protocol, data.dir, data.max_train_rows)
    tokenizer = load_tokenizer(run.model.name, data.max_length)
    model = from_pretrained(
        run.model.name,
        capaboost=run.adapter,
        num_labels=max(1, len(task.labels)),
        ignore_mismatched_sizes=True,  # a checkpoint of another task has a head for other classes
    )
    model.config.pad_token_id = tokenizer.pad_token_id  # by which decoders find a row's last token
    test = data.test or f"{data.holdout:.0%} of each class of it, held out"
    part = "" if data.max_train_rows is None else f"{len(parts.train):,} training rows; "
    return TaskSetup(
        model=model,
        task=Classification(
            accelerator, task, tokenizer, parts, data.max_length, run.train.batch_size, run.train.seed
        ),
        name=data.task,
        metric=task.primary,
        select_by=f"selection_{task.primary}",
        split_note=part + (SPLIT_NOTES[data.protocol].format(data=data, test=test)),
        inference={
            "kind": "texts",
            "model": run.model.to_dict(),
            "classes": list(task.labels),
            "columns": list(task.texts if isinstance(task, GlueTask) else data.columns),
            "max_length": data.max_length,
        },
    )
