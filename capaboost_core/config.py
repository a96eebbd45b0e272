"""The adapter's configuration, which checks itself, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from capaboost_core.errors import UserError
from capaboost_core.method_settings import UNTIED, used_settings
from capaboost_core.settings import Settings, Text, Texts, refuse
from capaboost_core.yaml_file import read_yaml

FLOAT32 = (2.0**-126, 2.0**127)  # within its normal range


class CapaBoostConfig(Settings):
    """What is tuned, and how d parallel modules share one weight (arXiv 2407.01320, Eq. 3-5).

    A weight w of shape (out, in) is seen by module i as w * m_i, with m_i a boolean mask of exactly
    round(density * numel) ones. `num_tied=1, density=1.0` is the plain method. `method` may be given by
    position. A setting that means nothing to the method is refused, unless it has its default.

    Raises:
        UserError: If a setting is unknown, means nothing to the method, or is out of range.
    """

    kind: ClassVar[str] = "adapter setting"

    method: Literal["lora", "padapter", "hadapter", "prefix", "linear", "full"] = Field(
        "lora",
        description="lora, padapter (after the feed-forward part), hadapter (after attention too), prefix (keys and "
        "values in front of the attention's own), and the baselines linear (head only) and full (every weight).",
    )
    r: int = Field(
        8,
        ge=1,
        le=65536,
        description="Inner dimension of one module: LoRA's rank, an adapter's bottleneck width, a prefix's length.",
    )
    num_tied: int = Field(
        2,
        ge=1,
        le=8,  # the masks of an entry are the bits of one byte
        description="d, the number of parallel modules that share the weight.",
    )
    density: float = Field(
        0.5, gt=0, le=1, examples=["0.5"], description="Share of entries that each mask keeps; n / m with mask nm."
    )
    mask: Literal["random", "nm", "same", "dropout"] = Field(
        "random",
        description="random: one mask per copy; same: all copies share the first mask; nm: n of each m neighbours "
        "along the reduction dimension; dropout: redrawn at every training step.",
    )
    n: int | None = Field(None, ge=1, description="Kept entries of each group, with mask nm.")
    m: int | None = Field(None, ge=1, description="Group length, with mask nm.")
    seed: int = Field(
        0,
        ge=0,
        lt=2**64,
        description="Seed of the masks, independent of the run's own; only with masks that are drawn once.",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        examples=["16"],
        json_schema_extra={"null": "alpha = r"},
        description="The increment is scaled by alpha / r; of lora and the adapters.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        examples=["0.1"],
        description="Probability of dropping an entry of the module's input in training; of lora and the adapters.",
    )
    init: Literal["lora", "official"] = Field(
        "lora",
        description="lora: Kaiming-uniform A over its fan-in, B = 0; official: the authors' code, A ~ U(-1/sqrt(r), "
        "1/sqrt(r)) for LoRA, N(0, 0.02) on both factors for adapters. A prefix always starts from N(0, 0.02).",
    )
    targets: Text | Texts = Field(
        "attention-qv",
        examples=["attention-qv"],
        description="Of lora: attention-qv (q and v, each with factors of its own), fused-qkv (the layer that fuses "
        "q, k and v, with one A for the three) or all-linear (q, k, v, o, f1 and f2); of lora and the adapters full "
        "suffixes of module paths, such as [attn.proj].",
    )
    activation: Literal["relu", "swish", "gelu"] = Field(
        "relu", description="Of an adapter's bottleneck; hadapter's presets have swish, as its sources do."
    )
    after_dropout: bool = Field(
        False,
        description="hadapter in an encoder of BERT's form: the bottleneck follows the dropout after the layer, as in "
        "its sources, and not the layer.",
    )

    def __init__(self, method: str = "lora", **values: Any):
        super().__init__(method=method, **values)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self._check_groups()
        self._check_used()
        if not FLOAT32[0] <= self.scaling <= FLOAT32[1]:
            refuse("alpha", self.alpha, f"alpha / r scales the increment and has to fit into float32; try {self.r}")
        return self

    def _check_groups(self) -> None:
        n, m = self.n, self.m
        if self.mask != "nm":
            if n is not None or m is not None:
                raise ValueError(f"n and m belong to mask: nm, but mask is {self.mask}; set mask: nm or drop them")
            return
        if n is None or m is None:
            raise ValueError("mask: nm needs n and m; for 2:4 masks set n: 2 and m: 4")
        if n > m:
            raise ValueError(f"n is {n} and m is {m}; n of each m are kept, so set n to {m} or less")
        if "density" in self.model_fields_set and self.density != n / m:
            raise ValueError(f"density follows from n and m with mask: nm; drop it or set it to {n / m}")
        self.derive("density", n / m)

    def _check_used(self) -> None:
        used = used_settings(self.__dict__)
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in used or value in (field.default, UNTIED.get(name)):
                continue
            why = "means nothing without masks that are drawn once" if name == "seed" and "r" in used else ""
            refuse(name, value, f"it {why or f'means nothing to method {self.method}'}; drop it")
        for name in UNTIED.keys() - used:
            self.derive(name, UNTIED[name])

    @property
    def scaling(self) -> float:
        """The factor alpha / r of the increment."""
        return 1.0 if self.alpha is None else self.alpha / self.r

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """Read back what an adapter file holds; settings that its method does not use are passed over.

        Versions before 0.2 recorded them, such as the r that a config file gave to `linear`.

        Raises:
            UserError: If a setting is unknown or out of range.
        """
        if not isinstance(values, Mapping):
            return cls.from_dict(values)
        used = used_settings({**values, "method": cls(values.get("method", "lora")).method})
        return cls.from_dict({name: v for name, v in values.items() if name in used or name not in cls.model_fields})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file that maps setting names to values.

        Raises:
            UserError: If the file is missing, is no mapping, or holds a wrong setting.
        """
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise UserError(f"{path} must map setting names to values, such as `r: 8`")
        return cls.from_dict(values)


PLAIN = dict(num_tied=1, density=1.0)
PRESETS = {
    "capaboost-lora": CapaBoostConfig("lora"),
    "lora": CapaBoostConfig("lora", **PLAIN),
    "capaboost-padapter": CapaBoostConfig("padapter"),
    "padapter": CapaBoostConfig("padapter", **PLAIN),
    "capaboost-hadapter": CapaBoostConfig("hadapter", activation="swish"),
    "hadapter": CapaBoostConfig("hadapter", activation="swish", **PLAIN),
    "capaboost-prefix": CapaBoostConfig("prefix"),
    "prefix": CapaBoostConfig("prefix", **PLAIN),
    "linear": CapaBoostConfig("linear", **PLAIN),
    "full": CapaBoostConfig("full", **PLAIN),
}


def resolve_config(value: CapaBoostConfig | dict[str, Any] | str, **changes: Any) -> CapaBoostConfig:
    """A configuration from itself, a dict, or the name of a preset; `changes` replace its fields.

    Raises:
        UserError: If the preset is unknown, or a setting is.
    """
    if isinstance(value, str):
        if value not in PRESETS:
            raise UserError(f"unknown preset {value!r}; type one of: {', '.join(PRESETS)}")
        value = PRESETS[value]
    if isinstance(value, CapaBoostConfig):
        return value.replace(**changes) if changes else value
    if isinstance(value, dict):
        return CapaBoostConfig.from_dict({**value, **changes})
    raise UserError(
        f"capaboost is a {type(value).__name__}; give a CapaBoostConfig, a dict of its settings, or a preset name"
    )
