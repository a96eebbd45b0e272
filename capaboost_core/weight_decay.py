"""Which parameters an optimizer decays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def weight_decay_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, decay_biases: bool = False
) -> list[dict[str, Any]]:
    """Two groups for an optimizer: matrices, packed or not, decay; biases and norms only with `decay_biases`.

    timm's optimizers find the same groups by themselves. transformers' `Trainer` leaves out what stands below a norm,
    and so the matrices of a PAdapter in an encoder that norms after the sum; give it these groups:

        optimizer = torch.optim.AdamW(weight_decay_groups(trainable_parameters(model).values(), 0.01), lr=1e-3)
        trainer = Trainer(model, arguments, optimizers=(optimizer, None))
    """
    parameters = list(parameters)
    spared = [p for p in parameters if p.ndim <= 1 and not decay_biases]
    decayed = [p for p in parameters if p.ndim > 1 or decay_biases]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
