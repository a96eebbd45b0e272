"""What is to be adapted, as plain data: an integration plans, the core carries out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from capaboost_core.errors import UserError


@dataclass(frozen=True)
class Target:
    """One layer to adapt: an `nn.Linear`, an attention, or for an adapter the `nn.LayerNorm` of a residual sum or the
    `nn.Dropout` after a linear layer.

    Attributes:
        path: Its module path in the base model.
        slices: (start, stop) ranges of its output that each get an increment of their own, such as q and
            v of a fused qkv; None stands for the whole output.
        beside: Path of the linear layer before a dropout.
    """

    path: str
    slices: tuple[tuple[int, int], ...] | None = None
    beside: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that injection has to know of an architecture.

    Attributes:
        targets: The layers to adapt.
        head: Path prefixes of the modules and parameters that are trained and saved with the adapter.
        switches: (module path, attribute) flags to set, without which the architecture would read a
            target's weight past its forward (timm's BEiT, EVA and SwinV2).
    """

    targets: tuple[Target, ...]
    head: tuple[str, ...] = ()
    switches: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """Read back `to_dict`, also after JSON made lists of its tuples."""
        targets = tuple(
            Target(t["path"], None if t["slices"] is None else tuple((a, b) for a, b in t["slices"]), t.get("beside"))
            for t in values["targets"]
        )
        return cls(targets, tuple(values["head"]), tuple((a, b) for a, b in values["switches"]))


def has_suffix(path: str, suffix: str) -> bool:
    """True if the last components of a dotted path are the suffix: `a.proj` ends in `proj`, `a.qproj` does not."""
    return path == suffix or path.endswith("." + suffix)


def plan_suffixes(model: nn.Module, suffixes: Sequence[str], head: Sequence[str] = ()) -> Plan:
    """Target every `nn.Linear` outside the head whose path ends in one of the full suffixes.

    Raises:
        UserError: If a suffix matches no linear layer.
    """
    linears = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(in_prefix(path, prefix) for prefix in head)
    ]
    for suffix in suffixes:
        if not any(has_suffix(path, suffix) for path in linears):
            known = sorted({".".join(p for p in path.split(".") if not p.isdigit()) for path in linears})
            raise UserError(
                f"targets: no linear layer of {type(model).__name__} ends in {suffix!r}; there are {', '.join(known)}"
            )
    chosen = (path for path in linears if any(has_suffix(path, suffix) for suffix in suffixes))
    return Plan(tuple(Target(path) for path in chosen), tuple(head))


def in_prefix(path: str, prefix: str) -> bool:
    """True if a dotted path is the prefix or lies below it."""
    return path == prefix or path.startswith(prefix + ".")
