"""Random draws for Theorem 3.1: rank(X + Y) = rank(X) + rank(Y), and what masks on tied factors keep of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from capaboost_core.errors import UserError
from capaboost_core.methods import Method
from capaboost_core.report.rank import TOLERANCE, spectrum
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
STRIDE = 1_000_003  # between the draws of two seeds, so that they do not overlap


def draw_theorem(size: int, draws: int, seed: int) -> dict[str, Any]:
    """Count the ranks of sums of two (size, size) matrices of rank r.

    Independent: X + Y, each a product (size, r) @ (r, size) of entries from N(0, 1), for r up to size.
    The theorem says 2r with probability 1 while 2r < size.

    Masked: sum_i (B * mb_i)(A * ma_i), i = 1, 2, with one B and one A of r = size / 8, under the masks of
    an adapter, at each density; the mask seed differs from draw to draw.

    Returns:
        What a report holds: for each case how often the rank was min(2r, size), and all ranks.

    Raises:
        UserError: If the size is below 24, or there is no draw.
    """
    if size < 24 or draws < 1:  # smaller, the lowest density keeps no entry
        raise UserError(f"size is {size} and draws is {draws}; type a size of 24 or more and 1 draw or more")
    seeds = range(seed * STRIDE, seed * STRIDE + draws)
    r_values = sorted({size * part // 16 for part in range(1, 17)} | {size // 2 - 1, size // 2 + 1})
    tied = size // 8
    cases = [(mask, density) for mask in ("random", "same") for density in DENSITIES]
    return {
        "size": size,
        "seed": seed,
        "independent": [{"r": r, **_count(_independent_sum, size, r, seeds)} for r in r_values],
        "masked_r": tied,
        "masked": [
            {"mask": mask, "density": density, **_count(_masked_sum(mask, density), size, tied, seeds)}
            for mask, density in cases
        ],
        "tolerance": TOLERANCE,
    }


def _count(draw: Callable[[int, int, int], Tensor], size: int, r: int, seeds: Iterable[int]) -> dict[str, Any]:
    ranks = Counter(spectrum(draw(size, r, seed)).rank() for seed in seeds)
    expected = min(2 * r, size)
    return {
        "expected": expected,
        "equal": ranks[expected],
        "draws": ranks.total(),
        "ranks": {str(rank): ranks[rank] for rank in sorted(ranks)},
    }


def _independent_sum(size: int, r: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, y = (_normal(size, r, generator) @ _normal(r, size, generator) for _ in range(2))
    return x + y


def _masked_sum(mask: str, density: float) -> Callable[[int, int, int], Tensor]:
    def draw(size: int, r: int, seed: int) -> Tensor:
        config = Method(r=r, num_tied=2, density=density, mask=mask, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        masks_a = mask_bits(config, "theorem", "A", (r, size))
        masks_b = mask_bits(config, "theorem", "B", (size, r))
        a = TiedWeight(config, masks_a, _normal(r, size, generator)).copies()
        b = TiedWeight(config, masks_b.T, _normal(size, r, generator).T).copies()
        return (b.mT @ a).sum(0)

    return draw


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)
