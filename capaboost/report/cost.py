"""What one adapted model costs: parameters, multiply-adds, adapter file, optimizer state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capaboost.report.flops import FlopCounts, count_flops
from capaboost_core.account import account_of
from capaboost_core.errors import UserError
from capaboost_core.injection import parameter_counts, trainable_parameters
from capaboost_core.methods import METHODS, Method, resolve_config
from capaboost_core.settings import hint
from capaboost_core.sharing.tied import TyingSettings

BACKWARD = ("backward", "tied_backward")  # operators of a step's backward pass
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
}


@dataclass(frozen=True)
class ModelFactory:
    """A base model that is built afresh for each method, how it is adapted, and what it is fed."""

    build: Callable[[], nn.Module]
    inject: Callable[[nn.Module, Method], nn.Module]
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Products:
    """Multiply-adds: `effective` of the entries that masks keep, `executed` as the dense products run."""

    effective: int
    executed: int


@dataclass(frozen=True)
class Cost:
    """One adapted model in numbers.

    Attributes:
        trainable: Trained entries without the head's.
        head: The head's entries.
        total: Entries of the base model, the head not counted.
        forward: Multiply-adds of a forward pass of the complete model.
        step: Those of a forward and a backward pass.
        negligible: Non-matmul operators of a step, with their occurrences.
        unsupported: The same of operators that are not known to be so.
        file_bytes: Size of `adapter.safetensors`, the head included.
        optimizer_bytes: AdamW's state for all that is trained, the head included.
    """

    trainable: int
    head: int
    total: int
    forward: Products
    step: Products
    negligible: dict[str, int]
    unsupported: dict[str, int]
    file_bytes: int
    optimizer_bytes: int

    @property
    def percent(self) -> float:
        """Trained share of the model in percent, the head in neither."""
        return 100 * self.trainable / self.total


def cost_of(subject: ModelFactory, config: Method) -> Cost:
    """Adapt a fresh model and count.

    Raises:
        UserError: If the model cannot be adapted so.
    """
    model = subject.inject(subject.build(), config)
    counts, trained = parameter_counts(model), trainable_parameters(model)
    step = count_flops(model, subject.inputs, backward=True)
    return Cost(
        trainable=counts.trainable,
        head=counts.head,
        total=counts.total,
        forward=_forward_of(step),
        step=Products(step.effective, step.executed),
        negligible=step.negligible,
        unsupported=step.unsupported,
        file_bytes=adapter_file_bytes(account_of(model).everything),
        optimizer_bytes=optimizer_bytes(trained),
    )


def _forward_of(step: FlopCounts) -> Products:
    by_operator = (step.effective_by_operator, step.executed_by_operator)
    return Products(*(sum(n for name, n in counts.items() if name not in BACKWARD) for counts in by_operator))


def settings_of(preset: str, changes: dict[str, Any]) -> Method:
    """A preset with changed settings; what ties or masks weights leaves a plain method plain.

    The baselines `linear` and `full` have no settings and stay as they are.

    Raises:
        UserError: If the preset or a setting is unknown, or a value is out of range.
    """
    config = resolve_config(preset)
    if "method" in changes:
        raise UserError("adapter.method is not a setting here; choose methods with --methods")
    known = {name for method in METHODS.values() for name in method.model_fields}
    for name in changes:
        if name not in known:
            raise UserError(f"unknown adapter setting {name}; {hint(name, known)}")
    if not type(config).model_fields:
        return config
    plain = isinstance(config, TyingSettings) and config.is_plain
    return config.replace(
        **{name: value for name, value in changes.items() if not (plain and name in TyingSettings.model_fields)}
    )


def optimizer_bytes(parameters: dict[str, nn.Parameter]) -> int:
    """Bytes of AdamW's state after a step: two moments an entry, and a step count of 4 bytes a tensor."""
    return sum(2 * p.numel() * p.element_size() + 4 for p in parameters.values())


def adapter_file_bytes(parameters: Mapping[str, Tensor]) -> int:
    """Bytes of the file that `save_adapter` writes, from the format alone: no weights are needed.

    A safetensors file is 8 bytes of length, a JSON header filled up to a multiple of 8, and the data,
    ordered by falling size of the entries, integers last, and then by name.
    """
    header: dict[str, Any] = {"__metadata__": {"mask_checksum": "0" * 64}}
    offset = 0
    for name, p in sorted(parameters.items(), key=_order_in_file):
        size = p.numel() * p.element_size()
        header[name] = {"dtype": DTYPES[p.dtype], "shape": list(p.shape), "data_offsets": [offset, offset + size]}
        offset += size
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + offset


def _order_in_file(item: tuple[str, Tensor]) -> tuple[int, bool, str]:
    name, parameter = item
    return -parameter.element_size(), not parameter.is_floating_point(), name
