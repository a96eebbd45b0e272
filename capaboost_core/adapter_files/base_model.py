"""Whether a base model is the one that an adapter was trained on: by name, and by a fingerprint of frozen weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.wrappers import clean, named_parameters, whole

SAMPLE = 256  # entries of each tensor
STRIDE = 0x9E3779B1  # odd and near 2^32 times the golden ratio: the entries spread over rows and columns


class DifferentBaseWarning(UserWarning):
    """The frozen weights differ from those that the adapter was trained on."""


@dataclass(frozen=True)
class Fingerprint:
    """A fingerprint of frozen weights, one number per tensor, independent of the device and precision that hold them.

    Attributes:
        eps: Relative spacing of the coarsest precision among the tensors.
        values: sum_j v_j cos(j) over up to 256 entries v_j of each tensor, by its name.
    """

    eps: float
    values: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Fingerprint:
        """Read back `to_dict`.

        Raises:
            UserError: If a value has another type.
        """
        numbers = [values.get("eps"), *_values(values.get("values"))] if isinstance(values, dict) else [None]
        if not all(isinstance(number, float) for number in numbers):
            raise UserError("fingerprint must hold eps and values, all numbers with a point")
        return cls(values["eps"], dict(values["values"]))


def fingerprint(model: nn.Module, saved: Collection[str]) -> Fingerprint:
    """The fingerprint of all that an adapter file does not hold; increments that are merged do not count.

    Args:
        model: A base model or an adapted one.
        saved: Names of the parameters that the file holds.
    """
    sums = {name: _sample_sum(tensor) for name, tensor in _frozen(model, saved)}
    eps = max((spacing for *_, spacing in sums.values()), default=0.0)
    return Fingerprint(eps, {name: float(f"{total:.8g}") for name, (total, *_) in sorted(sums.items())})


def differing(model: nn.Module, saved: Collection[str], expected: Fingerprint) -> list[str]:
    """Names of the frozen tensors that differ from the fingerprint by more than rounding to either precision."""
    now = {name: _sample_sum(tensor) for name, tensor in _frozen(model, saved)}
    names = sorted(now.keys() ^ expected.values.keys())
    for name in sorted(now.keys() & expected.values.keys()):
        total, norm, spacing = now[name]
        eps = max(spacing, expected.eps)
        # Rounding errors are independent, about 0.3 eps each; below 1e-3 fp16 is coarser than its eps says.
        if abs(total - expected.values[name]) > (2 * eps + 1e-7) * norm + 1e-3 * eps:
            names.append(name)
    return names


def same_name(trained_on: str, model: str) -> bool | None:
    """Whether two names mean one base model; None where only the weights can tell.

    Names of timm and of the hub mean one model each, `x/model` another than `y/model`. A folder may hold a
    copy of any model: with the last part of its name in common it is taken for one.
    """
    if trained_on == model:
        return True
    names = (PurePath(trained_on), PurePath(model))
    if any(_is_folder(name) for name in (trained_on, model)):
        return True if names[0].name == names[1].name else None
    # The hub knows some models with and without their owner, such as FacebookAI/roberta-base.
    return None if names[0].name == names[1].name and 1 in map(len, (n.parts for n in names)) else False


def _is_folder(name: str) -> bool:
    """A hub's name has at most one slash, and nothing lies at it."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).is_dir()


def _values(mapping: Any) -> list[Any]:
    return list(mapping.values()) if isinstance(mapping, dict) else [None]


def _frozen(model: nn.Module, saved: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Floating parameters and persistent buffers by name."""
    buffers = {
        clean(f"{path}.{name}" if path else name): buffer
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }
    for name, tensor in (named_parameters(model) | buffers).items():
        if tensor.is_floating_point() and name not in saved:
            yield name, whole(tensor)


def _sample_sum(tensor: Tensor) -> tuple[float, float, float]:
    """sum_j v_j cos(j) and the norm of the sampled entries v, and the spacing of the tensor's precision."""
    count = min(SAMPLE, tensor.numel())
    places = torch.arange(count) * STRIDE % tensor.numel() if count else torch.arange(0)
    sample = tensor.flatten()[places.to(tensor.device)].cpu().double().nan_to_num(0.0, 1.0, -1.0)
    waves = torch.tensor([math.cos(j) for j in range(count)], dtype=torch.float64)
    return float(sample @ waves), float(sample.norm()), torch.finfo(tensor.dtype).eps
