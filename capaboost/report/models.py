"""Base models by name, from timm or from a transformers configuration, with inputs to count on.

Of the two libraries only that of the model is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from capaboost.report.cost import ModelFactory
from capaboost_core import UserError
from capaboost_core.settings import hint
from capaboost_text import architectures

TOKENS = 128


@dataclass(frozen=True)
class Sizes:
    """Sizes of inputs and head; None takes 128 tokens, the image size of the model, or a classifier of texts."""

    batch_size: int = 1
    sequence_length: int | None = None
    image_size: int | None = None
    classes: int = 2
    head: str | None = None


def make_subject(name: str, sizes: Sizes, device: str = "meta") -> ModelFactory:
    """A base model with random weights, or with none on the meta device.

    Raises:
        UserError: If the name is unknown, or the model cannot have these sizes.
    """
    if architectures.is_known(name):
        return _text(name, sizes, device)
    import timm

    import capaboost_vision  # noqa: F401  registers the embedded backbone

    if timm.is_model(name):
        return _image(name, sizes, device)
    known = [*architectures.SHIPPED, *timm.list_models()]
    otherwise = f"type a timm name, {', '.join(architectures.SHIPPED)}, or a folder with config.json"
    raise UserError(f"unknown model {name!r}; {hint(name, known, otherwise=otherwise)}")


def architecture(name: str) -> str:
    """One text for all names of an architecture, independent of its weights."""
    return str(architectures.SHIPPED.get(name) or name.partition(".")[0])


def describe(subject: ModelFactory) -> str:
    """Batch and size of the inputs in words."""
    ((name, value),) = subject.inputs.items()
    size = f"image {' x '.join(map(str, value.shape[1:]))}" if name == "x" else f"sequence length {value.shape[1]}"
    return f"batch {value.shape[0]}, {size}"


def _text(name: str, sizes: Sizes, device: str) -> ModelFactory:
    if sizes.image_size:
        raise UserError(f"--image-size is for timm models; for {name} type --sequence-length")
    import capaboost_text

    length = sizes.sequence_length or TOKENS
    head = {"task": sizes.head} if sizes.head else {"num_labels": sizes.classes}
    create = partial(architectures.build, name, **head)
    build, model = _on(device, create), _on("meta", create)()
    config: Any = model.config
    # RoBERTa's positions start behind that of its padding.
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    limit = getattr(config, "max_position_embeddings", length) - offset
    if length > limit:
        raise UserError(f"--sequence-length is {length}; {name} takes up to {limit}")
    shape = (sizes.batch_size, length)
    if device == "meta":  # tokens without values would be asked whether they are padding
        return ModelFactory(
            build, capaboost_text.inject, {"inputs_embeds": torch.zeros(*shape, config.hidden_size, device=device)}
        )
    return ModelFactory(build, capaboost_text.inject, {"input_ids": torch.full(shape, 2, device=device)})


def _image(name: str, sizes: Sizes, device: str) -> ModelFactory:
    if sizes.sequence_length:
        raise UserError(f"--sequence-length is for text models; for {name} type --image-size")
    import timm
    from timm.data.config import resolve_model_data_config

    import capaboost_vision

    size = {"img_size": sizes.image_size} if sizes.image_size else {}
    create = partial(timm.create_model, name, num_classes=sizes.classes, **size)
    try:
        model = _on("meta", create)()
        shape = resolve_model_data_config(model)["input_size"]
        shape = (shape[0], sizes.image_size, sizes.image_size) if sizes.image_size else shape
        model(torch.zeros(1, *shape, device="meta"))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it does not fit"
        attempt = f"--image-size {sizes.image_size} for" if size else "cannot build"
        raise UserError(f"{attempt} {name}: {reason}; {'leave it out' if size else 'choose another model'}") from error
    return ModelFactory(
        _on(device, create), capaboost_vision.inject, {"x": torch.zeros(sizes.batch_size, *shape, device=device)}
    )


def _on(device: str, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """What builds on the device; without values it copies one model, since initial values take most of the time."""

    def built() -> nn.Module:
        with torch.device(device):
            return build()

    first = cache(built)
    return (lambda: deepcopy(first())) if device == "meta" else built
