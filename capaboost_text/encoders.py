"""Load a transformers model with a head for a task, or a language model; adapt it, freeze the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from capaboost_core.errors import UserError, is_no_memory, reason_of
from capaboost_core.injection import inject as inject_plan
from capaboost_core.injection import undone_on_error
from capaboost_core.liveness import check_alive_by_example
from capaboost_core.methods import Method, resolve_config
from capaboost_core.plan import in_prefix
from capaboost_text.hub import reach_hub
from capaboost_text.roles import roles_of

HEADS = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
    "causal-lm": AutoModelForCausalLM,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
}
LANGUAGE_MODELS = ("causal-lm", "seq2seq-lm")  # whose output layer is pretrained

Model = TypeVar("Model", bound=nn.Module)


def from_pretrained(
    name_or_path: str | Path,
    task: str = "sequence-classification",
    capaboost: Method | dict[str, Any] | str = "capaboost-lora",
    **kwargs: Any,
) -> PreTrainedModel:
    """A pretrained model for a task, adapted; the additions and a fresh head are trainable.

    A pooler that the checkpoint lacks, and that is therefore random, belongs to the head. A language model has no
    fresh head: its output layer is pretrained, often tied to the embedding, and stays frozen.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or a name on the hub.
        task: `sequence-classification`, `token-classification`, `question-answering`, `multiple-choice`, `causal-lm`
            or `seq2seq-lm`.
        capaboost: A configuration, a dict of its settings, or a preset name.
        **kwargs: Passed to transformers' `from_pretrained`, such as `num_labels`; the default `dtype` is float32.

    Raises:
        UserError: If the task or the architecture is not supported, or the weights cannot be had, have other
            sizes, or are those of an adapted model; for `causal-lm` also if its tokens see later ones.
    """
    if task not in HEADS:
        raise UserError(f"task is {task!r}; type one of: {', '.join(HEADS)}")
    config = resolve_config(capaboost)
    if task in LANGUAGE_MODELS:
        return _inject(load_language_model(name_or_path, task, **kwargs), config, ())
    model, missing = _load(name_or_path, task, kwargs)
    return _inject(model, config, _missing_pooler(model, missing, name_or_path))


def load_classifier(name_or_path: str | Path, num_labels: int, pad_token_id: int | None) -> PreTrainedModel:
    """The pretrained model with a head of `num_labels` classes, as the training commands take it before it is adapted.

    Args:
        name_or_path: As for `from_pretrained`.
        num_labels: A checkpoint of another task has a head for other classes; a fresh one takes its place.
        pad_token_id: The tokenizer's, by which decoders find a row's last token.
    """
    settings = {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    model = _load(name_or_path, "sequence-classification", settings)[0]
    model.config.pad_token_id = pad_token_id
    return model


def load_language_model(name_or_path: str | Path, task: str = "causal-lm", **kwargs: Any) -> PreTrainedModel:
    """The pretrained language model, as the training command takes it before it is adapted.

    Raises:
        UserError: If it cannot be had, lacks weights, or attends to later tokens, as encoders do.
    """
    model, missing = _load(name_or_path, task, kwargs)
    if missing:
        raise UserError(_lacks(name_or_path, missing))
    causal = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    if task == "causal-lm" and causal and not any(causal):
        raise UserError(
            f"{name_or_path} is a {model.config.model_type} whose tokens attend to later ones; give a decoder, or "
            "pass is_decoder=True if it was trained as one"
        )
    return model


def _load(name_or_path: str | Path, task: str, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of weights that its checkpoint lacks."""
    if "torch_dtype" in kwargs:  # the name of earlier versions of transformers
        older = kwargs.pop("torch_dtype")
        if kwargs.setdefault("dtype", older) != older:
            raise UserError(f"torch_dtype is {older} and dtype is {kwargs['dtype']}; give dtype alone")
    resize_head = kwargs.pop("ignore_mismatched_sizes", False)
    try:
        with _quiet(), reach_hub(name_or_path):
            model, report = HEADS[task].from_pretrained(
                name_or_path,
                **{"dtype": torch.float32} | kwargs,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report says which
            )
    except Exception as error:  # transformers and safetensors fail in many ways on damaged files
        if is_no_memory(error):
            raise
        raise UserError(_not_loaded(name_or_path, task, error)) from error
    _check_no_adapter(report["unexpected_keys"], name_or_path)
    _check_sizes(model, report["mismatched_keys"], name_or_path, resize_head)
    return model, sorted(report["missing_keys"])


def _not_loaded(name_or_path: str | Path, task: str, error: Exception) -> str:
    if "Unrecognized configuration class" in str(error):
        return f"{name_or_path} is of an architecture without a model for {task}; give another"
    return (
        f"cannot load {name_or_path} ({reason_of(error)}); give a folder with a sound config.json and "
        "model.safetensors, or a hub name with a network"
    )


def inject(model: nn.Module, config: Method | dict[str, Any] | str) -> nn.Module:
    """Adapt a transformers model in place, as `from_pretrained` does after loading.

    The additions train, and so does the head of a model for a task. Of a base model alone, as `AutoModel` makes it,
    and of a language model, whose output layers are pretrained, the additions alone train.

    Raises:
        UserError: If the configuration or the architecture is not supported.
    """
    return _inject(model, resolve_config(config), ())


def _inject(model: Model, config: Method, head: tuple[str, ...]) -> Model:
    roles = roles_of(model)
    plan = config.plan(model, replace(roles, head=roles.head + head))
    if roles.blocks:
        inject_plan(model, config, plan)
        return model
    with undone_on_error(model, ()):  # only a forward pass shows whether an unknown architecture calls these layers
        check_alive_by_example(inject_plan(model, config, plan))
    return model


def _check_no_adapter(unexpected: Iterable[str], name: str | Path) -> None:
    """Refuse a checkpoint that `save_pretrained` wrote of an adapted model: it lacks masks and settings."""
    lost = sorted(key for key in unexpected if key.endswith(".packed"))
    if lost:
        raise UserError(
            f"{name} holds weights of an adapter without its settings, such as {lost[0]}; save adapted models with "
            "save_adapter, and load that with load_adapter into their base model"
        )


def _check_sizes(
    model: PreTrainedModel, mismatched: Iterable[tuple[str, Any, Any]], name: str | Path, resize_head: bool
) -> None:
    """Refuse other sizes than the checkpoint's: a head of another size is random, an encoder would stay so."""
    of_encoder = {key: in_prefix(key, model.base_model_prefix) for key, _, _ in mismatched}
    for key, there, here in sorted(mismatched, key=lambda entry: (not of_encoder[entry[0]], entry[0])):
        sizes = f"{name}: {key} is {tuple(there)} in the weights and {tuple(here)} by config.json or the arguments"
        if of_encoder[key]:
            raise UserError(f"{sizes}; the encoder must keep its sizes, set the one of its weights")
        if not resize_head:
            raise UserError(f"{sizes}; for a fresh head pass ignore_mismatched_sizes=True")
        warnings.warn(f"{sizes}; it starts fresh", stacklevel=2)


def _missing_pooler(model: PreTrainedModel, missing: list[str], name: str | Path) -> tuple[str, ...]:
    """Path of the pooler if the checkpoint lacks it; a lack of anything else is refused."""
    pooler = f"{model.base_model_prefix}.pooler"
    lost = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and not in_prefix(key, pooler)]
    if lost:
        raise UserError(_lacks(name, lost))
    return (pooler,) if any(in_prefix(key, pooler) for key in missing) else ()


def _lacks(name: str | Path, lost: list[str]) -> str:
    return (
        f"{name} lacks {len(lost)} of the weights that its config.json asks for, such as {lost[0]}; give a folder "
        "with all weights, or with the config.json that was saved with these"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bar and its table of the weights that the head lacks."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
