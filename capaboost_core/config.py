"""The adapter's configuration: a frozen dataclass that checks itself."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from capaboost_core.errors import UserError

METHODS = ("lora", "padapter", "hadapter", "prefix", "linear", "full")
MASKS = ("random", "nm", "same", "dropout")
INITS = ("lora", "official")
ACTIVATIONS = ("relu", "swish", "gelu")
NAMED_TARGETS = ("attention-qv", "fused-qkv", "all-linear")
MAX_TIED = 8  # the masks of an entry are the bits of one byte


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}; type one of: {', '.join(choices)}")


def _check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of {low} or more"
        raise UserError(f"{name} is {value!r}; type a whole number {bounds}")


def _check_number(name: str, value: Any, wanted: str, holds) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not holds(value):
        raise UserError(f"{name} is {value!r}; type a number {wanted}")


@dataclass(frozen=True)
class CapaBoostConfig:
    """What is tuned, and how d parallel modules share one weight (arXiv 2407.01320, Eq. 3-5).

    A weight w of shape (out, in) is seen by module i as w * m_i, with m_i a boolean mask of exactly
    round(density * numel) ones. `num_tied=1, density=1.0` is the plain method.

    Attributes:
        method: `lora`, `padapter` (after the feed-forward part), `hadapter` (after attention too), `prefix`
            (keys and values in front of the attention's own), and the baselines `linear` (head only) and
            `full` (every weight).
        r: Inner dimension of one module: LoRA's rank, an adapter's bottleneck width, a prefix's length.
        num_tied: d, the number of parallel modules that share the weight (1 to 8).
        density: Share of entries that each mask keeps, in (0, 1].
        mask: `random`: one mask per copy; `same`: all copies share the first mask; `nm`: n of each m
            neighbours along the reduction dimension; `dropout`: redrawn at every training step.
        n: Kept entries of each group, with `mask="nm"`; density is then n / m.
        m: Group length, with `mask="nm"`.
        seed: Seed of the masks; independent of the run's own seed.
        alpha: The increment is scaled by alpha / r; None means alpha = r, a scale of 1. Not with `prefix`.
        dropout: Probability of dropping an entry of the module's input in training. Not with `prefix`.
        init: `lora`: Kaiming-uniform A over its fan-in, B = 0; `official`: the authors' code, that is
            A ~ U(-1/sqrt(r), 1/sqrt(r)) for LoRA, N(0, 0.02) on both factors for adapters. A prefix
            starts from N(0, 0.02) with either.
        targets: LoRA's: `attention-qv`: q and v, each with factors of its own; `fused-qkv`: the layer that fuses
            q, k and v, with one A for the three; `all-linear`: q, k, v, o, f1 and f2; or full suffixes of module
            paths such as `attn.proj`.
        activation: Of an adapter's bottleneck: `relu`, `swish` or `gelu`. HAdapter's presets have `swish`, as its
            sources do.
        after_dropout: HAdapter in an encoder of BERT's form: the bottleneck follows the dropout after the layer, as
            in its sources, and not the layer.

    Raises:
        UserError: If a value is out of range.
    """

    method: str = "lora"
    r: int = 8
    num_tied: int = 2
    density: float = 0.5
    mask: str = "random"
    n: int | None = None
    m: int | None = None
    seed: int = 0
    alpha: float | None = None
    dropout: float = 0.0
    init: str = "lora"
    targets: str | tuple[str, ...] = "attention-qv"
    activation: str = "relu"
    after_dropout: bool = False

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("mask", self.mask, MASKS)
        _check_choice("init", self.init, INITS)
        _check_choice("activation", self.activation, ACTIVATIONS)
        if self.after_dropout and self.method != "hadapter":
            raise UserError(f"after_dropout is hadapter's, but method is {self.method}; drop it")
        _check_whole("r", self.r, 1)
        _check_whole("num_tied", self.num_tied, 1, MAX_TIED)
        _check_whole("seed", self.seed, 0)
        _check_number("density", self.density, "above 0 and at most 1, such as 0.5", lambda v: 0 < v <= 1)
        _check_number("dropout", self.dropout, "from 0 to below 1, such as 0.1", lambda v: 0 <= v < 1)
        if self.alpha is not None:
            _check_number("alpha", self.alpha, "above 0, or leave it out for alpha = r", lambda v: v > 0)
        self._check_prefix()
        self._check_groups()
        self._check_targets()

    def _check_prefix(self) -> None:
        if self.method == "prefix" and self.alpha is not None:
            raise UserError("alpha scales an increment, and method prefix has none; drop alpha")
        if self.method == "prefix" and self.dropout:
            raise UserError("dropout acts on a module's input, and method prefix has none; set dropout: 0")

    def _check_groups(self) -> None:
        if self.mask != "nm":
            if self.n is not None or self.m is not None:
                raise UserError(f"n and m belong to mask: nm, but mask is {self.mask}; set mask: nm or drop them")
            return
        if self.n is None or self.m is None:
            raise UserError("mask: nm needs n and m; for 2:4 masks set n: 2 and m: 4")
        _check_whole("n", self.n, 1)
        _check_whole("m", self.m, 1)
        if self.n > self.m:
            raise UserError(f"n is {self.n} and m is {self.m}; n of each m are kept, so set n to {self.m} or less")
        if self.density not in (self.n / self.m, CapaBoostConfig.density):
            raise UserError(f"density follows from n and m with mask: nm; drop it or set it to {self.n / self.m}")
        object.__setattr__(self, "density", self.n / self.m)

    def _check_targets(self) -> None:
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not isinstance(targets, (list, tuple)) or not targets or not all(isinstance(t, str) for t in targets):
            raise UserError(
                f"targets is {self.targets!r}; type {', '.join(NAMED_TARGETS)}, or a list of module suffixes"
            )
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def scaling(self) -> float:
        """The factor alpha / r of the increment."""
        return 1.0 if self.alpha is None else self.alpha / self.r

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CapaBoostConfig:
        """Build from plain values, as read from YAML or JSON.

        Raises:
            UserError: If a key is unknown or a value is out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
                raise UserError(f"unknown adapter setting {key!r}; {hint}")
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> CapaBoostConfig:
        """Read a YAML file that maps setting names to values.

        Raises:
            UserError: If the file is missing, is no mapping, or holds a wrong setting.
        """
        try:
            values = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} must map setting names to values, such as `r: 8`")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back and JSON can hold."""
        values = asdict(self)
        if isinstance(self.targets, tuple):
            values["targets"] = list(self.targets)
        return values


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
        return replace(value, **changes) if changes else value
    if isinstance(value, dict):
        return CapaBoostConfig.from_dict({**value, **changes})
    raise UserError(
        f"capaboost is a {type(value).__name__}; give a CapaBoostConfig, a dict of its settings, or a preset name"
    )
