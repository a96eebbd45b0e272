"""The rank of trained increments: how many directions they use, and how evenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.injection import adapted_layers, injection_of

TOLERANCE = "a singular value counts if it is above max(out, in) * eps(float64) * the largest, as in NumPy"


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix.

    Attributes:
        shape: (out, in) of the matrix.
        values: In descending order and double precision; those that are left out are zero.
    """

    shape: tuple[int, int]
    values: Tensor

    def rank(self, precision: torch.dtype = torch.float64) -> int:
        """Numerical rank: the number of values above max(out, in) * eps(precision) * the largest.

        This is the rule of `numpy.linalg.matrix_rank`. Trained factors are exact numbers whatever
        precision they are stored in, and all arithmetic on them here is double: so eps is that of
        float64. With `precision=torch.float32` only those values count that would not drown in the
        rounding of an increment that is formed, or merged, in single precision.
        """
        tolerance = max(self.shape) * torch.finfo(precision).eps * self.values[0]
        return int((self.values > tolerance).sum())

    @property
    def stable_rank(self) -> float:
        """||M||_F^2 / ||M||_2^2 (Rudelson and Vershynin, 2007), from 1 to the rank; 0 for M = 0."""
        if not self.values[0]:
            return 0.0
        return float((self.values / self.values[0]).square().sum())

    @property
    def effective_rank(self) -> float:
        """exp(-sum_k p_k log p_k) with p_k = value k / their sum (Roy and Vetterli, 2007); 0 for M = 0."""
        if not self.values[0]:
            return 0.0
        shares = self.values / self.values.sum()
        return float(torch.special.entr(shares).sum().exp())


def spectrum(matrix: Tensor) -> Spectrum:
    """Singular values of a matrix (out, in)."""
    return Spectrum(tuple(matrix.shape), torch.linalg.svdvals(_double(matrix)))


def product_spectrum(b: Tensor, a: Tensor) -> Spectrum:
    """Singular values of b (out, k) @ a (k, in) without that product.

    With b = Q R and a^T = P S, both Q and P with orthonormal columns, b a = Q (R S^T) P^T has the
    singular values of R S^T, which is at most (k, k): for r = 16 of width 768, 16 x 16.
    """
    r = torch.linalg.qr(_double(b), mode="r").R
    s = torch.linalg.qr(_double(a).T, mode="r").R
    return Spectrum((b.shape[0], a.shape[1]), torch.linalg.svdvals(r @ s.T))


@dataclass(frozen=True)
class IncrementRank:
    """The increment on rows start to stop of a layer's weight.

    Attributes:
        layer: Module path in the base model.
        bound: Upper bound of its rank: the smaller of d*r and the width.
    """

    layer: str
    start: int
    stop: int
    bound: int
    spectrum: Spectrum

    def to_dict(self) -> dict[str, Any]:
        """Plain values; singular values with six digits."""
        return {
            "layer": self.layer,
            "rows": [self.start, self.stop],
            "shape": list(self.spectrum.shape),
            "bound": self.bound,
            "rank": self.spectrum.rank(),
            "rank_float32": self.spectrum.rank(torch.float32),
            "stable_rank": self.spectrum.stable_rank,
            "effective_rank": self.spectrum.effective_rank,
            "singular_values": [float(f"{value:.6g}") for value in self.spectrum.values.tolist()],
        }


@torch.no_grad()
def model_ranks(model: nn.Module) -> list[IncrementRank]:
    """The rank of each increment of an adapted model, by layer and slice, as evaluation sees it.

    Raises:
        UserError: If the model has no LoRA increments, or a factor is not finite.
    """
    layers = adapted_layers(model)
    if not layers or not all(layer.low_rank for layer in layers):
        method = injection_of(model).config.method
        raise UserError(f"method {method} adds no increment to a weight, so there is no rank; give a LoRA adapter")
    return [
        _increment_rank(layer.path, at, *factors)
        for layer in layers
        for at, factors in zip(layer.slices, layer.factors_by_slice(), strict=True)
    ]


def _increment_rank(path: str, at: tuple[int, int], a: Tensor, b: Tensor) -> IncrementRank:
    if not (a.isfinite().all() and b.isfinite().all()):
        raise UserError(f"{path} holds values that are not finite; train again with a smaller learning rate")
    return IncrementRank(path, *at, min(b.shape[0], *a.shape), product_spectrum(b, a))


def _double(matrix: Tensor) -> Tensor:
    return matrix.detach().cpu().double()
