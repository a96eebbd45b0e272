"""How much the outputs of two passes over a batch differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[list[Any]]:
    """Within the context a list fills with what the model returns."""
    outputs: list[Any] = []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def disagreement(first: Any, second: Any) -> Tensor:
    """The symmetric KL divergence (KL(p || q) + KL(q || p)) / 2 of two outputs, a mean over rows.

    Each side learns from the other's values as they are (microsoft/AdaMix src/transformers/models/roberta/
    modeling_roberta.py:1179-1188@d361e9d). Outputs are logits (..., classes), or hold fields with names in `logits`,
    whose divergences are summed. A regression has one class, and no divergence.
    """
    pairs = zip(_logits(first), _logits(second), strict=True)
    return sum(_towards(p, q.detach()) + _towards(q, p.detach()) for p, q in pairs) / 2


def _towards(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || logits)."""
    logits, target = (values.flatten(0, -2).log_softmax(-1) for values in (logits, target))
    return F.kl_div(logits, target, reduction="batchmean", log_target=True)


def _logits(output: Any) -> list[Tensor]:
    found = [output] if isinstance(output, Tensor) else [v for name, v in output.items() if name.endswith("logits")]
    return [logits.float() for logits in found]
