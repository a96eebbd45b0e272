"""Checks that a base model is the one that an adapter was trained on, by its name and a fingerprint of its weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, cast

import torch
from torch import Tensor, nn

from capaboost_core.account import changing, persistent_buffers
from capaboost_core.errors import UserError
from capaboost_core.injection import adapted_layers, find_injection, own_parameters
from capaboost_core.plan import in_prefix
from capaboost_core.wrappers import gather_full, kind_if_no_floats, named_modules, named_parameters, unwrap

SAMPLED_ENTRIES = 256  # of each tensor
CHUNK_ROWS = 4096  # in double precision at a time
STRIDE = 0x9E3779B1  # odd and near 2^32 times the golden ratio, which spreads the sample over rows and columns


class DifferentBaseWarning(UserWarning):
    """The frozen weights differ from those that the adapter was trained on."""


@dataclass(frozen=True)
class Fingerprint:
    """A fingerprint of frozen weights, one number per tensor, independent of the device and precision that hold them.

    Attributes:
        eps: Relative spacing of the coarsest precision among the tensors.
        values: sum_j v_j cos(j) over up to 256 entries v_j of each tensor, by its name.
        rows: The same over all entries of tensors with a row for each token, in blocks of 1, 2, 4, 8, ... rows from
            the end, where tokens are added; None in files of earlier versions.
    """

    eps: float
    values: dict[str, float]
    rows: dict[str, list[float]] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Fingerprint:
        """Read back `to_dict`.

        Raises:
            UserError: If a value has another type.
        """
        fields = cast(dict[str, Any], values if isinstance(values, dict) else {})
        rows = fields.get("rows")
        numbers = [fields.get("eps"), *_values(fields.get("values"))]
        for of_tensor in () if rows is None else _values(rows):
            numbers += cast(list[Any], of_tensor) if isinstance(of_tensor, list) else [None]
        if not all(isinstance(number, float) for number in numbers):
            raise UserError("fingerprint must hold eps, values and lists of rows, all numbers with a point")
        return cls(fields["eps"], dict(fields["values"]), rows)


def fingerprint(model: nn.Module, saved: Collection[str]) -> Fingerprint:
    """The fingerprint of all tensors that an adapter file does not hold; merging does not change it.

    Args:
        model: A base model or an adapted one.
        saved: Names of the parameters that the file holds.
    """
    values: dict[str, float] = {}
    rows: dict[str, list[float]] = {}
    eps, tokens = 0.0, _token_rows(model)
    for name, tensor in sorted(_frozen(model, saved)):
        values[name], eps = _rounded(_sample_sum(tensor)[0]), max(eps, torch.finfo(tensor.dtype).eps)
        if name in tokens:
            rows[name] = [_rounded(total) for total, _ in _row_sums(tensor)]
    return Fingerprint(eps, values, rows)


def differing(model: nn.Module, saved: Collection[str], expected: Fingerprint) -> list[str]:
    """Names of the frozen tensors that differ from the fingerprint by more than rounding to either precision."""
    names, rows = {*expected.values}, expected.rows or {}
    for name, tensor in _frozen(model, saved):
        eps = max(torch.finfo(tensor.dtype).eps, expected.eps)
        found, wanted = [_sample_sum(tensor)], [expected.values.get(name, math.nan)]
        if name in rows:
            found, wanted = found + _row_sums(tensor), wanted + rows[name]
        same = len(found) == len(wanted) and all(
            # Rounding errors are independent, about 0.3 eps each; below 1e-3 fp16 is coarser than its eps says.
            abs(total - value) <= (2 * eps + 1e-7) * norm + 1e-3 * eps
            for (total, norm), value in zip(found, wanted, strict=True)
        )
        (names.discard if same else names.add)(name)
    return sorted(names)


def beside_base(model: nn.Module) -> set[str]:
    """Names of a model's tensors besides its base: additions and head, or all that trains if nothing is adapted."""
    model = unwrap(model)
    injection = find_injection(model)
    if injection is None:
        return set(changing(model))
    layers = adapted_layers(model)
    names = set(own_parameters(layers)) | {f"{layer.path}.{name}" for layer in layers for name in layer.own_buffers()}
    tensors = named_parameters(model) | persistent_buffers(model)
    return names | {name for name in tensors if any(in_prefix(name, prefix) for prefix in injection.plan.head)}


def base_hash(model: nn.Module, beside: Collection[str]) -> str:
    """The first 16 digits of SHA-256 over the bits and names of all floating tensors that are not in `beside`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_frozen(model, beside), key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def same_name(trained_on: str, model: str) -> bool | None:
    """Whether two names mean one base model; None if only the weights can decide.

    Each name of timm or of the hub means one model, and `x/model` another one than `y/model`. A folder may hold a copy
    of any model; it is taken for the other one if the last parts of their names are equal.
    """
    if trained_on == model:
        return True
    names = (PurePath(trained_on), PurePath(model))
    if any(_is_folder(name) for name in (trained_on, model)):
        return True if names[0].name == names[1].name else None
    # The hub knows some models with and without their owner, such as FacebookAI/roberta-base.
    return None if names[0].name == names[1].name and 1 in map(len, (n.parts for n in names)) else False


def _is_folder(name: str) -> bool:
    """Whether a name is a path: a name of the hub has at most one slash, and no folder has that name."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).is_dir()


def _values(mapping: Any) -> list[Any]:
    return list(cast(dict[Any, Any], mapping).values()) if isinstance(mapping, dict) else [None]


def _frozen(model: nn.Module, saved: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Floating parameters and persistent buffers by name; quantized ones dequantized."""
    for name, tensor in (named_parameters(model) | persistent_buffers(model)).items():
        if tensor.is_floating_point() and name not in saved:
            yield name, gather_full(tensor).dequantize() if kind_if_no_floats(tensor) else gather_full(tensor)


def _token_rows(model: nn.Module) -> set[str]:
    """Names of tensors with a row for each token: embeddings, and parameters of an output layer of the same length."""
    embeddings = {path: module for path, module in named_modules(model).items() if isinstance(module, nn.Embedding)}
    longest = max((module.num_embeddings for module in embeddings.values()), default=0)
    layers = {name: len(p) for name, p in named_parameters(model).items() if p.ndim in (1, 2)}
    as_long = {name for name, length in layers.items() if embeddings and length == longest}
    return as_long | {f"{path}.weight" for path in embeddings}


def _sample_sum(tensor: Tensor) -> tuple[float, float]:
    """sum_j v_j cos(j) over the sampled entries v, and their norm."""
    count = min(SAMPLED_ENTRIES, tensor.numel())
    indices = _count_up(count, torch.int64) * STRIDE % max(1, tensor.numel())
    sample = _exact(tensor.flatten()[indices.to(tensor.device)])
    return float(sample @ _count_up(count).cos()), float(sample.square().sum().sqrt())


def _row_sums(tensor: Tensor) -> list[tuple[float, float]]:
    """For blocks of 1, 2, 4, ... rows from the end: the sum of v_ij cos(i) cos(j) over the entries, and their norm."""
    matrix = tensor.reshape(len(tensor), -1)
    of_rows: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(matrix), CHUNK_ROWS):
        part = _exact(matrix[start : start + CHUNK_ROWS])
        of_rows.append((part @ _count_up(part.shape[1]).cos(), part.square().sum(1)))
    sums, squares = (torch.cat(chunks) for chunks in zip(*of_rows, strict=True))
    sums = sums * _count_up(len(tensor)).cos()
    stops = [max(0, len(tensor) + 1 - 2**k) for k in range(len(tensor).bit_length() + 1)]
    return [(float(sums[i:j].sum()), float(squares[i:j].sum().sqrt())) for j, i in pairwise(stops) if i < j]


def _exact(tensor: Tensor) -> Tensor:
    return tensor.cpu().double().nan_to_num(0.0, 1.0, -1.0)


def _count_up(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """0, 1, 2, ... on the CPU, for any default device."""
    return torch.arange(count, dtype=dtype, device="cpu")


def _rounded(value: float) -> float:
    return float(f"{value:.8g}")
