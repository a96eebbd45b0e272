"""The rank of trained increments and of random sums (Theorem 3.1): values, JSON reports and tables."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from capaboost.training.result import command_line, git_state, library_versions
from capaboost_core.errors import UserError
from capaboost_core.files import write_atomically
from capaboost_core.injection import adapted_layers, injection_of, parameter_counts
from capaboost_core.methods.lora import LoRA
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight

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
    rows, columns = matrix.shape
    return Spectrum((rows, columns), torch.linalg.svdvals(_double(matrix)))


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
    layers: list[Any] = adapted_layers(model)
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


PAPER_R = (8, 16, 32, 64)
PAPER_RANKS = {1: (8, 16, 32, 64), 2: (16, 32, 64, 128), 4: (32, 64, 128, 256)}
PAPER_FACTORS = {1: (1, 2, 4, 8), 2: (0.75, 1.5, 3, 6), 4: (0.94, 1.9, 3.75, 7.5)}
MEASURES = {"stable rank": "stable_rank", "effective rank": "effective_rank"}
NUMBERS = re.compile(r"\[[\s\d.,eE+-]*\]")


def adapter_record(model: nn.Module) -> dict[str, Any]:
    """Settings, parameter counts and ranks of an adapted model; `paper` where Table 1 has its r and d.

    `parameter_factor` is relative to plain LoRA of r = 8 on the same layers, as in Table 1.

    Raises:
        UserError: If the model has no LoRA increments.
    """
    increments = model_ranks(model)
    config: Any = injection_of(model).config  # what has increments has r, num_tied, density and mask
    trainable = parameter_counts(model).trainable
    return {
        "r": config.r,
        "num_tied": config.num_tied,
        "density": config.density,
        "mask": config.mask,
        "trainable_parameters": trainable,
        "parameter_factor": trainable / sum(8 * sum(increment.spectrum.shape) for increment in increments),
        "paper": paper_values(config),
        "tolerance": TOLERANCE,
        "increments": [increment.to_dict() for increment in increments],
    }


def paper_values(config: Any) -> dict[str, float] | None:
    """Rank and parameter factor in Table 1 (arXiv 2407.01320): RoBERTa-base of width 768 on CoLA."""
    density = 1.0 if config.num_tied == 1 else 0.5
    known = config.r in PAPER_R and config.num_tied in PAPER_RANKS
    if not known or (config.density, config.mask) != (density, "random"):
        return None
    column = PAPER_R.index(config.r)
    return {
        "rank": PAPER_RANKS[config.num_tied][column],
        "parameter_factor": PAPER_FACTORS[config.num_tied][column],
    }


def write_report(path: Path, plots: Sequence[str], values: dict[str, Any]) -> None:
    """Write a report as JSON, atomically, with what is needed to repeat it and the plots it has data for."""
    report = {
        "plots": list(plots),
        **values,
        "versions": library_versions(),
        "git": git_state(),
        "command": command_line(),
    }
    text = NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), json.dumps(report, indent=2))
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def increments_table(record: dict[str, Any]) -> Table:
    """One row an increment, and one for all of them."""
    table = Table("layer", "rows", "shape", show_footer=True)
    increments = record["increments"]
    ranks, bounds = (sum(row[name] for row in increments) for name in ("rank", "bound"))
    footers = {"at most": f"{bounds:,}", "rank": f"{ranks:,}"}
    footers |= {title: f"{_mean(record, name):.1f}" for title, name in MEASURES.items()}
    for title, footer in footers.items():
        table.add_column(title, footer, justify="right")
    table.columns[0].footer = f"{len(increments)} increments: sums, means"
    for row in increments:
        rows, shape = (separator.join(map(str, row[name])) for name, separator in (("rows", ":"), ("shape", " x ")))
        measures = (f"{row[name]:.1f}" for name in MEASURES.values())
        table.add_row(row["layer"], rows, shape, str(row["bound"]), str(row["rank"]), *measures)
    return table


def study_table(records: Sequence[dict[str, Any]]) -> Table:
    """The layout of Table 1, with the paper's values in parentheses; measures are means over increments.

    A rank is marked `full` where the width, not d*r, bounds it.
    """
    columns = sorted({record["r"] for record in records})
    table = Table("rank of method", *(f"r = {r}" for r in columns))
    for num_tied in sorted({record["num_tied"] for record in records}):
        by_r = {record["r"]: record for record in records if record["num_tied"] == num_tied}
        name = "LoRA" if num_tied == 1 else f"CapaBoost-LoRA (d = {num_tied})"
        for title, cell in {name: _rank_cell, "  #Param": _factor_cell}.items():
            table.add_row(title, *(cell(by_r[r]) if r in by_r else "" for r in columns))
        for title, measure in MEASURES.items():
            table.add_row(f"  {title}", *(f"{_mean(by_r[r], measure):.1f}" if r in by_r else "" for r in columns))
    return table


def _rank_cell(record: dict[str, Any]) -> str:
    ranks = [row["rank"] for row in record["increments"]]
    low, high = min(ranks), max(ranks)
    rank = str(low) if low == high else f"{low} to {high}"
    full = any(row["bound"] < record["r"] * record["num_tied"] for row in record["increments"])
    paper = f" ({record['paper']['rank']})" if record["paper"] else ""
    return f"{rank}{', full' if full else ''}{paper}"


def _factor_cell(record: dict[str, Any]) -> str:
    paper = f" ({record['paper']['parameter_factor']:g}x)" if record["paper"] else ""
    return f"{record['parameter_factor']:.3g}x{paper}"


def _mean(record: dict[str, Any], name: str) -> float:
    return statistics.fmean(row[name] for row in record["increments"])


def theorem_table(report: dict[str, Any]) -> Table:
    """How often the rank of a sum was min(2r, n)."""
    size, r = report["size"], report["masked_r"]
    table = Table("sum of two", "case", "min(2r, n)", "equal", "rank: draws", title=f"n = {size}")
    for row in report["independent"]:
        table.add_row("independent products", f"r = {row['r']}", *_theorem_cells(row))
    for row in report["masked"]:
        kind = "one mask for both" if row["mask"] == "same" else "a mask for each"
        table.add_row(f"tied factors, {kind}", f"r = {r}, density {row['density']:g}", *_theorem_cells(row))
    return table


def _theorem_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    ranks = ", ".join(f"{rank}: {draws}" for rank, draws in row["ranks"].items())
    return str(row["expected"]), f"{row['equal']} of {row['draws']}", ranks


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


def _masked_sum(mask: Any, density: float) -> Callable[[int, int, int], Tensor]:
    def draw(size: int, r: int, seed: int) -> Tensor:
        config = LoRA(r=r, num_tied=2, density=density, mask=mask, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        masks_a = mask_bits(config, "theorem", "A", (r, size))
        masks_b = mask_bits(config, "theorem", "B", (size, r))
        a = TiedWeight(config, masks_a, _normal(r, size, generator)).copies()
        b = TiedWeight(config, masks_b.T, _normal(size, r, generator).T).copies()
        return (b.mT @ a).sum(0)

    return draw


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)
