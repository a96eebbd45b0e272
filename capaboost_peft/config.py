"""The settings of CapaBoost-LoRA in peft: LoRA's, and those of the shared weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, cast

from peft import LoraConfig
from peft.utils import PeftType

from capaboost_core.errors import UserError
from capaboost_core.methods import Method
from capaboost_core.methods.lora import LoRA

NAME = "CAPABOOST"
TYING = ("num_tied", "density", "mask", "n", "m", "seed", "scaling")
INITS = (True, False, "gaussian")
UNUSED = ("lora_bias", "layer_replication", "ensure_weight_tying", "use_qalora")  # of LoRA's settings


def peft_type() -> PeftType:
    """The member CAPABOOST of peft's enum of methods, which is added to it if it is not there.

    peft has no way for another package to do so; all its tables are keyed by the member.
    """
    if NAME not in PeftType.__members__:
        member: Any = str.__new__(PeftType, NAME)
        member._name_, member._value_, member._sort_order_ = NAME, NAME, len(PeftType)
        setattr(PeftType, NAME, member)
        PeftType._member_map_[NAME] = PeftType._value2member_map_[NAME] = member
        PeftType._member_names_.append(NAME)
    return PeftType.__members__[NAME]


@dataclass
class CapaBoostConfig(LoraConfig):
    """s * sum_i (B * mb_i)(A * ma_i) on each target, d modules that share one A and one B.

    These are Eq. 3 to 5 of https://arxiv.org/abs/2407.01320. All settings of `peft.LoraConfig` that are not refused
    mean what they mean there; `r` is the rank of one module, so that an increment has rank d r. By default a file has
    0.75 of the entries of LoRA's.

    Attributes:
        num_tied: d, the number of parallel modules that share the weight.
        density: Share of entries that each mask keeps; n / m with mask nm.
        mask: random, nm (n of each m neighbours along the reduction dimension), same, or dropout (redrawn at every
            training step).
        n: Kept entries of each group, with mask nm.
        m: Group length, with mask nm.
        seed: Of the masks, which are never stored: they follow from seed, module path, weight and copy.
        scaling: stable: s = lora_alpha / (r d density^2); alpha-r: s = lora_alpha / r, as in the paper. `use_rslora`
            multiplies both by sqrt(r).
        slices: The parts of fused layers that get separate increments: letters of "qkv", such as
            {"qkv": "qv"}, or rows of the output, such as {"qkv": [[0, 384], [768, 1152]]}. Keys are as those of
            `rank_pattern`.
        mask_checksum: SHA-256 of the masks, which saving fills in and loading compares.

    Raises:
        UserError: If a setting is out of range, or one of LoRA's that has no meaning here is set.
    """

    num_tied: int = field(default=2, metadata={"help": "d, the number of modules that share the weight"})
    density: float = field(default=0.5, metadata={"help": "Share of entries that each mask keeps"})
    mask: str = field(default="random", metadata={"help": "random, nm, same or dropout"})
    n: int | None = field(default=None, metadata={"help": "Kept entries of each group, with mask nm"})
    m: int | None = field(default=None, metadata={"help": "Group length, with mask nm"})
    seed: int = field(default=0, metadata={"help": "Seed of the masks"})
    scaling: str = field(default="stable", metadata={"help": "stable: alpha / (r d density^2); alpha-r: alpha / r"})
    slices: dict[str, Any] | None = field(
        default=None, metadata={"help": 'What of fused layers is adapted, such as {"qkv": "qv"}'}
    )
    mask_checksum: str | None = field(default=None, metadata={"help": "SHA-256 of the masks, set by saving"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type()
        self._check_lora_settings()
        if self.mask == "nm" and self.n and self.m and self.density == CapaBoostConfig.density:
            self.density = self.n / self.m  # it was left at its default
        self.method()
        self.expected_checksum = self.mask_checksum  # not a field: that of the file

    def _check_lora_settings(self) -> None:
        if self.init_lora_weights not in INITS:
            raise UserError(f"init_lora_weights is {self.init_lora_weights!r}; choose True, False or 'gaussian'")
        for setting in fields(self):
            used = getattr(self, setting.name)
            if used and (setting.metadata.get("is_lora_variant") or setting.name in UNUSED):
                raise UserError(f"{setting.name}: not with CapaBoost, whose weights are shared; drop it")
        for key, rows in (self.slices or {}).items():
            if not (rows and set(rows) <= set("qkv") if isinstance(rows, str) else _rise(rows)):
                advice = 'letters of "qkv" or (start, stop) pairs in rising order'
                raise UserError(f"slices: {key!r} has {rows!r}; give {advice}")

    def method(self, r: int | None = None, alpha: float | None = None, **changes: Any) -> LoRA:
        """The method of `capaboost_core` with these settings, for one layer's r and alpha if they are given.

        Raises:
            UserError: If a setting is out of range.
        """
        r, alpha = r or self.r, self.lora_alpha if alpha is None else alpha
        values = {name: getattr(self, name) for name in TYING} | {"dropout": self.lora_dropout} | changes
        alpha = float(alpha) * (math.sqrt(r) if self.use_rslora else 1)
        return cast(LoRA, Method(method="lora", r=r, alpha=alpha, **values))


def _rise(rows: Any) -> bool:
    """Whether rows are (start, stop) pairs in rising order."""
    try:
        bounds = [bound for start, stop in rows for bound in (start, stop)]
    except (TypeError, ValueError):
        return False
    valid = bool(bounds) and all(type(bound) is int for bound in bounds) and bounds[0] >= 0
    return valid and bounds == sorted(bounds) and all(start < stop for start, stop in rows)


def rows_of(rows: Any, width: int, model_config: Any, path: str) -> tuple[tuple[int, int], ...]:
    """The (start, stop) ranges of a fused layer's output that `slices` names.

    Args:
        rows: The entry of the layer: letters, or ranges.
        width: The size of the layer's output.
        model_config: transformers' configuration, which says how many heads share keys and values; None otherwise.
        path: The path of the layer.

    Raises:
        UserError: If the ranges end outside the layer, or its rows are not q, k and v one after another.
    """
    if not isinstance(rows, str):
        if rows[-1][1] > width:
            raise UserError(f"slices: those of {path} end outside its {width} outputs; lower them")
        return tuple((start, stop) for start, stop in rows)
    heads = getattr(model_config, "num_attention_heads", None) or 1
    groups = getattr(model_config, "num_key_value_heads", None) or heads
    if path.endswith("query_key_value") or width % (heads + 2 * groups):
        raise UserError(f"slices: q, k and v are no three blocks of rows of {path}; give (start, stop) ranges")
    unit = width // (heads + 2 * groups)
    ends = {"q": (0, heads * unit), "k": (heads * unit, (heads + groups) * unit)}
    ends["v"] = (ends["k"][1], width)
    return tuple(ends[letter] for letter in "qkv" if letter in rows)
