"""Accounts of several methods on one base model, each beside plain LoRA with the same settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from capaboost_core.config import PRESETS, CapaBoostConfig
from capaboost_core.errors import UserError
from capaboost_core.report.account_table import Row, Sheet, bytes_text
from capaboost_core.report.accounting import Account, Subject, account, settings_of
from capaboost_core.report.flops import FlopCounts, count_flops

KINDS = ("effective", "executed")
PASSES = ("forward", "step", "added")
SIZES = {
    "trainable_parameters": ("trainable", "{:,}".format),
    "percent_of_model": ("% of model", "{:.3f}".format),
    "percent_of_lora": ("% of LoRA's", "{:.2f}".format),
    "adapter_file_bytes": ("adapter file", bytes_text),
    "optimizer_state_bytes": ("optimizer state", bytes_text),
    "peak_memory_bytes": ("peak memory", bytes_text),
}
NOTES = {
    "convention": "1 multiply-add = 1; effective counts the entries that masks keep, executed the dense products "
    "that run; a step is forward and backward; added is a forward pass beyond the base model's",
    "adapter file": "computed from the safetensors format, the head included",
    "optimizer state": "AdamW's after a step, computed: two moments an entry and 4 bytes a tensor, the head included",
}


@dataclass(frozen=True)
class Report:
    """Plain numbers of all methods.

    Attributes:
        base: `total_parameters` and `forward_gmacs` of the base model, and the `head_parameters` beside it.
        rows: One dict a method.
        left_out: Methods that this model or these settings do not allow, with the reason.
        unsupported: Operators that are not counted, with their occurrences in a training step, by method.
    """

    base: dict[str, float]
    rows: list[Row]
    left_out: dict[str, str]
    unsupported: dict[str, dict[str, int]]

    def sheets(self) -> list[Sheet]:
        """A table of parameters and bytes, and one of multiply-adds."""
        sizes = {name: column for name, column in SIZES.items() if any(name in row for row in self.rows)}
        lines = tuple((row["method"], *(text(row[name]) for name, (_, text) in sizes.items())) for row in self.rows)
        titles = tuple(title for title, _ in sizes.values())
        names = [(name, kind) for name in PASSES for kind in KINDS]
        counts = tuple((row["method"], *(_gmacs(row, f"{a}_{b}") for a, b in names)) for row in self.rows)
        return [
            Sheet("Parameters and bytes", ("method", *titles), lines),
            Sheet("GMACs (times LoRA's)", ("method", *(f"{a}, {b}" for a, b in names)), counts),
        ]

    def facts(self) -> dict[str, str]:
        """What a reader has to know of the numbers."""
        method = self.rows[0]["method"] if self.rows else "lora"
        operators = ", ".join(f"{name} {number}" for name, number in sorted(self.unsupported.get(method, {}).items()))
        facts = {
            "base": f"{self.base['total_parameters']:,} parameters, {self.base['forward_gmacs']:.4g} GMACs forward; "
            f"the head's {self.base['head_parameters']:,} parameters are in no count or share of parameters",
            **NOTES,
            f"not counted in a step of {method}": operators or "nothing",
        }
        return facts | {f"left out, {name}": reason for name, reason in self.left_out.items()}


def choose_methods(text: str) -> list[str]:
    """`all`, or presets with commas between them.

    Raises:
        UserError: If a preset is unknown.
    """
    names = list(PRESETS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PRESETS:
            raise UserError(f"unknown method {name!r}; type all, or some of: {','.join(PRESETS)}")
    return list(dict.fromkeys(names))


def make_report(
    subject: Subject,
    methods: Sequence[str],
    changes: dict[str, Any],
    strict: bool,
    peak_bytes: Callable[[CapaBoostConfig], int] | None = None,
) -> Report:
    """Count each method.

    Args:
        subject: The base model.
        methods: Presets.
        changes: Settings for all of them.
        strict: Refuse a method that the model or the settings do not allow, instead of leaving it out.
        peak_bytes: Measures the peak memory of a training step; left out, none is given.

    Raises:
        UserError: If LoRA, to which all is relative, or a method that is not left out cannot be had.
    """
    lora = account(subject, settings_of("lora", changes))
    base = count_flops(subject.build(), subject.inputs)
    facts = {"total_parameters": lora.total, "head_parameters": lora.head, "forward_gmacs": base.executed / 1e9}
    report = Report(facts, [], {}, {})
    for method in tqdm(methods, desc="methods", leave=False, disable=None):
        try:
            config = settings_of(method, changes)
            counted = account(subject, config)
        except UserError as error:
            if strict:
                raise
            report.left_out[method] = str(error)
            continue
        report.rows.append(_row(method, counted, lora, base))
        report.unsupported[method] = counted.unsupported
        if peak_bytes:
            report.rows[-1]["peak_memory_bytes"] = peak_bytes(config)
    return report


def _row(method: str, ours: Account, lora: Account, base: FlopCounts) -> Row:
    row = {
        "method": method,
        "trainable_parameters": ours.trainable,
        "percent_of_model": ours.percent,
        "percent_of_lora": 100 * ours.trainable / lora.trainable,
        "adapter_file_bytes": ours.file_bytes,
        "optimizer_state_bytes": ours.optimizer_bytes,
    }
    for kind in KINDS:
        of_lora, of_base = _passes(lora, kind), getattr(base, kind)
        for name, count in _passes(ours, kind).items():
            skipped = of_base if name == "added" else 0
            row[f"{name}_{kind}_gmacs"] = (count - skipped) / 1e9
            row[f"{name}_{kind}_times_lora"] = (count - skipped) / (of_lora[name] - skipped)
    return row


def _passes(counted: Account, kind: str) -> dict[str, int]:
    forward, step = getattr(counted.forward, kind), getattr(counted.step, kind)
    return {"forward": forward, "step": step, "added": forward}


def _gmacs(row: Row, name: str) -> str:
    return f"{row[f'{name}_gmacs']:.4g} ({row[f'{name}_times_lora']:.2f}x)"
