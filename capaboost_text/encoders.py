"""Load a transformers encoder with a head for a task, adapt it, freeze the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from capaboost_core.config import CapaBoostConfig, resolve_config
from capaboost_core.errors import UserError
from capaboost_core.inject import inject as inject_plan
from capaboost_text.targets import plan

HEADS = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
}


def from_pretrained(
    name_or_path: str | Path,
    task: str = "sequence-classification",
    capaboost: CapaBoostConfig | dict[str, Any] | str = "capaboost-lora",
    **kwargs: Any,
) -> nn.Module:
    """A pretrained encoder with a fresh head, adapted; the additions and the head are trainable.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or a name on the hub.
        task: `sequence-classification`, `token-classification`, `question-answering` or `multiple-choice`.
        capaboost: A configuration, a dict of its settings, or a preset name.
        **kwargs: Passed to transformers' `from_pretrained`, such as `num_labels`.

    Raises:
        UserError: If the task or the architecture is not supported, or the weights cannot be had.
    """
    if task not in HEADS:
        raise UserError(f"task is {task!r}; type one of: {', '.join(HEADS)}")
    config = resolve_config(capaboost)
    try:
        model = HEADS[task].from_pretrained(name_or_path, **kwargs)
    except RuntimeError as error:
        raise UserError(
            f"the head of {name_or_path} has other sizes than {kwargs}; pass ignore_mismatched_sizes=True"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load {name_or_path}: {str(error).strip().splitlines()[0]}; give a folder with config.json and "
            "model.safetensors, or a hub name with a network"
        ) from error
    return inject(model, config)


def inject(model: nn.Module, config: CapaBoostConfig | dict[str, Any] | str) -> nn.Module:
    """Adapt a transformers model in place, as `from_pretrained` does after loading.

    Raises:
        UserError: If the configuration or the architecture is not supported.
    """
    config = resolve_config(config)
    return inject_plan(model, config, plan(model, config))
