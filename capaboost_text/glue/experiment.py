"""A GLUE run: model and data from its settings."""

from __future__ import annotations

from accelerate import Accelerator

from capaboost_core.training.experiment import TaskSetup
from capaboost_text.encode import load_tokenizer
from capaboost_text.encoders import from_pretrained
from capaboost_text.glue.classification import Classification
from capaboost_text.glue.run import GlueRun
from capaboost_text.glue.splits import find_task, splits

SPLIT_NOTES = {
    "propetl": "half of dev, or 1,000 training rows, select the epoch; tested on the rest of dev",
    "adalora": "tested on dev, nothing selected",
}


def prepare(run: GlueRun, accelerator: Accelerator) -> TaskSetup:
    """Model and task of a run; nothing is written.

    Raises:
        UserError: If the model or the data cannot be had or do not fit each other.
    """
    data, glue = run.data, find_task(run.data.task)
    parts = splits(data.task, data.protocol, data.dir, data.max_train_rows)
    tokenizer = load_tokenizer(run.model.name, data.max_length)
    model = from_pretrained(run.model.name, capaboost=run.adapter, num_labels=max(1, len(glue.labels)))
    part = "" if data.max_train_rows is None else f"{len(parts.train):,} training rows; "
    return TaskSetup(
        model=model,
        task=Classification(
            accelerator, glue, tokenizer, parts, data.max_length, run.train.batch_size, run.train.seed
        ),
        name=data.task,
        metric=glue.primary,
        select_by=f"selection_{glue.primary}",
        split_note=part + SPLIT_NOTES[data.protocol],
    )
