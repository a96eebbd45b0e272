"""Roles of the modules of a transformer, such as `q` or `f2`, by which architectures and methods stay independent.

An integration has a table of the modules that have the roles, with a row for each architecture; a method names the
roles that it adapts.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.extras import PENDING

# A plan says as plain data what to adapt: a method makes it, `inject` executes it, and adapter files store it.


# (out, in) of a linear layer by its class. Integrations add the classes of their libraries, such as Conv1D.
SHAPES: dict[type[nn.Module], Callable[[Any], tuple[int, int]]] = {
    nn.Linear: lambda layer: (layer.out_features, layer.in_features)
}
# Flags that an adapter file may set: timm's BEiT, EVA and SwinV2 read the weight past the layer without it.
SETTABLE_FLAGS = ("qkv_bias_separate",)


@dataclass(frozen=True)
class Target:
    """One layer to adapt: a linear layer, an attention, or for an adapter the `nn.LayerNorm` of a residual sum or the
    `nn.Dropout` after a linear layer.

    Attributes:
        path: Its module path in the base model.
        slices: (start, stop) ranges of its output that each get a separate increment, such as q and v of a fused qkv;
            None stands for the complete output.
        follows: Path of the linear layer that a dropout follows.
        of_input: Whether the addition changes the input of the layer instead of its output.
    """

    path: str
    slices: tuple[tuple[int, int], ...] | None = None
    follows: str | None = None
    of_input: bool = False


@dataclass(frozen=True)
class Plan:
    """All that injection must know about an architecture.

    Attributes:
        targets: The layers to adapt.
        head: Path prefixes of the modules and parameters that are trained and saved with the adapter.
        required_flags: (module path, attribute) flags to set to true. Without them the architecture would read a
            target's weight without calling the layer (timm's BEiT, EVA and SwinV2). Files name them `switches`.
    """

    targets: tuple[Target, ...]
    head: tuple[str, ...] = ()
    required_flags: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["switches"] = values.pop("required_flags")
        return values

    @classmethod
    def from_dict(cls, values: Any) -> Plan:
        """Read back `to_dict`, also after JSON made lists of its tuples.

        Raises:
            UserError: If a value is missing or of another type, a target is there twice, or its slices are not
                ranges in rising order.
        """
        if not isinstance(values, dict) or not {"targets", "head", "switches"} <= values.keys():
            raise UserError("plan must hold targets, head and switches")
        targets = tuple(_read_target(value) for value in _sequence("plan.targets", values["targets"]))
        names("plan.targets", [target.path for target in targets])
        flags: list[tuple[str, str]] = []
        for value in _sequence("plan.switches", values["switches"]):
            pair = names("plan.switches", value)
            if len(pair) != 2:
                raise UserError("plan.switches must be pairs of a module path and an attribute")
            flags.append((pair[0], pair[1]))
        return cls(targets, names("plan.head", values["head"]), tuple(flags))

    def check(self, model: nn.Module) -> None:
        """Refuse a plan that does not fit the model.

        Raises:
            UserError: If a path does not exist, a slice ends outside its layer, or a required flag is not
                one that a model needs (`qkv_bias_separate`).
        """
        modules = dict(model.named_modules())
        known = modules.keys() | {name for name, _ in model.named_parameters()}
        for target in self.targets:
            if target.path not in modules:
                raise UserError(f"the model has no {target.path!r}, which plan.targets names")
            if target.follows is not None and linear_shape(modules.get(target.follows)) is None:
                raise UserError(f"the model has no linear layer {target.follows!r}, which plan.targets names")
            width, _ = linear_shape(modules[target.path]) or (0, 0)
            if target.slices and target.slices[-1][1] > width:
                raise UserError(f"plan.targets: slices of {target.path!r} end outside its {width} outputs")
        for prefix in self.head:
            if prefix not in known:
                raise UserError(f"the model has no {prefix!r}, which plan.head names")
        for path, attribute in self.required_flags:
            if attribute not in SETTABLE_FLAGS or not isinstance(getattr(modules.get(path), attribute, None), bool):
                raise UserError(
                    f"plan.switches may set {', '.join(SETTABLE_FLAGS)} only, not {attribute!r} of {path!r}"
                )


def names(key: str, values: Any) -> tuple[str, ...]:
    """Check that a value is a list of distinct names.

    Raises:
        UserError: If it is something else.
    """
    values = _sequence(key, values)
    if not all(isinstance(value, str) and value for value in values) or len({*values}) < len(values):
        raise UserError(f"{key} must be a list of distinct names")
    return tuple(values)


def complete() -> None:
    """Register the layers of the integrations whose libraries are imported by now."""
    for library in [library for library in PENDING if library in sys.modules]:
        importlib.import_module(PENDING.pop(library))


def linear_shape(layer: nn.Module | None) -> tuple[int, int] | None:
    """(out, in) of a linear layer; None of any other module."""
    complete()
    return next((shape(layer) for cls, shape in SHAPES.items() if isinstance(layer, cls)), None)


def _sequence(key: str, values: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(values, (list, tuple)):
        raise UserError(f"{key} must be a list")
    return values


def _read_target(values: Any) -> Target:
    if not isinstance(values, dict) or not {"path", "slices"} <= values.keys():
        raise UserError("plan.targets must each hold a path and slices")
    (path,) = names("plan.targets: path", [values["path"]])
    follows, of_input = values.get("follows"), values.get("of_input", False)
    if follows is not None:
        names("plan.targets: follows", [follows])
    if not isinstance(of_input, bool):
        raise UserError(f"plan.targets: of_input of {path!r} must be true or false")
    if values["slices"] is None:
        return Target(path, None, follows, of_input)
    slices = tuple(tuple(_sequence("slices", pair)) for pair in _sequence("slices", values["slices"]))
    bounds = [bound for pair in slices for bound in pair]
    pairs = bool(slices) and all(len(pair) == 2 for pair in slices) and all(type(bound) is int for bound in bounds)
    rising = pairs and bounds[0] >= 0 and all(start < stop for start, stop in slices)
    if not rising or sorted(bounds) != bounds:
        raise UserError(f"plan.targets: slices of {path!r} must be (start, stop) in rising order, without overlap")
    return Target(path, cast(tuple[tuple[int, int], ...], slices), follows, of_input)


def has_suffix(path: str, suffix: str) -> bool:
    """Whether the last components of a dotted path are the suffix: `a.proj` ends in `proj`, `a.qproj` does not."""
    return path == suffix or path.endswith("." + suffix)


def plan_suffixes(model: nn.Module, suffixes: Sequence[str], head: Sequence[str] = ()) -> Plan:
    """Target every linear layer outside the head whose path ends in one of the full suffixes.

    Raises:
        UserError: If a suffix matches no linear layer; the message names a matching layer of another class.
    """
    linears = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if linear_shape(module) and not any(in_prefix(path, prefix) for prefix in head)
    }
    for suffix in suffixes:
        if not any(has_suffix(path, suffix) for path in linears):
            _refuse_other_layers(model, suffix)
            known = sorted({".".join(p for p in path.split(".") if not p.isdigit()) for path in linears})
            raise UserError(
                f"targets: no linear layer of {type(model).__name__} ends in {suffix!r}; there are {', '.join(known)}"
            )
    chosen = {module for path, module in linears.items() if any(has_suffix(path, suffix) for suffix in suffixes)}
    paths = (path for path, module in model.named_modules() if module in chosen)  # a shared layer by its first path
    return Plan(tuple(Target(path) for path in paths), tuple(head))


def _refuse_other_layers(model: nn.Module, suffix: str) -> None:
    """Refuse a suffix that matches a layer with a weight whose class is not a known linear layer."""
    for path, module in model.named_modules():
        if has_suffix(path, suffix) and getattr(module, "weight", None) is not None:
            found = type(module)
            raise UserError(
                f"targets: {path} is a {found.__module__}.{found.__name__}, and only nn.Linear takes an adapter; "
                "choose other targets, or a model of nn.Linear layers"
            )


def in_prefix(path: str, prefix: str) -> bool:
    """Whether a dotted path is the prefix or lies below it."""
    return path == prefix or path.startswith(prefix + ".")


# The six matrices of a block: attention's four, and the two of the feed-forward part (f1 is a pair if it is gated).
MATRICES = ("q", "k", "v", "o", "f1", "f2")
# The others: the self-attention module; the norm between it and the feed-forward part; the module that gets the input
# of the feed-forward part; the norm of the residual sum after that, if an architecture norms after the sum; the
# dropouts that follow o and f2. The block itself has the role `block`.
BLOCK_ROLES = (*MATRICES, "attention", "attention_norm", "feed_forward", "norm", "o_dropout", "f2_dropout")


@dataclass(frozen=True)
class RoleModule:
    """A module that has a role, or the rows (start, stop) of its output that have it, as q in a fused qkv."""

    path: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Block:
    """One transformer block: its modules by role, and of a role that no module can have the reason."""

    modules: Mapping[str, tuple[RoleModule, ...]]
    missing: Mapping[str, str] = field(default_factory=dict)

    def modules_for(self, roles: Iterable[str]) -> list[RoleModule]:
        """The modules that have one of the roles, role by role.

        Raises:
            UserError: If the architecture computes a role without a module that an adapter could replace.
        """
        roles = tuple(roles)
        for role in roles:
            if role in self.missing:
                raise UserError(self.missing[role])
        return [module for role in roles for module in self.modules.get(role, ())]


@dataclass(frozen=True)
class Roles:
    """The parts of a model.

    Attributes:
        blocks: In the order of the model.
        embedding: Path of the embedding of tokens or patches.
        head: Path prefixes of the modules that a task trains with any method.
        required_flags: (module path, attribute) flags to set to true, without which a class reads a layer's weight
            without calling the layer.
        missing: Without blocks, the error message for a method that needs them.
    """

    blocks: tuple[Block, ...] = ()
    embedding: str | None = None
    head: tuple[str, ...] = ()
    required_flags: tuple[tuple[str, str], ...] = ()
    missing: str = ""

    def each_block(self) -> tuple[Block, ...]:
        """The blocks.

        Raises:
            UserError: If they are not known.
        """
        if not self.blocks:
            raise UserError(self.missing)
        return self.blocks

    def targets(self, roles: Iterable[str], whole: bool = False) -> tuple[Target, ...]:
        """The layers with the given roles, block by block; parts of one fused layer are slices of one target.

        Args:
            roles: Of BLOCK_ROLES, or `block`.
            whole: Target a fused layer completely if any of its parts has one of the roles.

        Raises:
            UserError: If the blocks are not known.
        """
        roles = tuple(roles)
        return tuple(target for block in self.each_block() for target in _targets(block.modules_for(roles), whole))


@dataclass(frozen=True)
class Architecture:
    """A row of an integration's table: the paths of the modules with each role, relative to a block.

    A role may have several paths; those count that exist in a block.

    Attributes:
        blocks: Regular expression of the last parts of a block's path.
        qkv: Path of a layer whose output is q, k and v side by side.
        widths: Function of the model and that layer for the widths of q, k and v; by default a third each. With
            grouped-query attention k and v are narrower than q. None where they lie head by head, so that none of
            them is one range of rows.
        embedding: Full path of the embedding.
        required_flags: Attributes of modules below a block that must be true, such as `attn.qkv_bias_separate`.
        missing: Roles that are computed without a module, each with the error message for methods that need it.
    """

    blocks: str
    q: str | tuple[str, ...] = ""
    k: str | tuple[str, ...] = ""
    v: str | tuple[str, ...] = ""
    qkv: str = ""
    o: str | tuple[str, ...] = ""
    f1: tuple[str, ...] = ()
    f2: tuple[str, ...] = ()
    norm: str = ""
    attention: str = ""
    attention_norm: str = ""
    feed_forward: str = ""
    o_dropout: str = ""
    f2_dropout: str = ""
    embedding: str = ""
    required_flags: tuple[str, ...] = ()
    widths: Callable[[nn.Module, nn.Module], tuple[int, int, int] | None] = lambda model, qkv: thirds(qkv)
    missing: Mapping[str, str] = field(default_factory=dict)

    def roles(self, model: nn.Module, head: Iterable[str] = ()) -> Roles:
        """The roles of a model's modules; a module without o or f2 is not a block, unless f2 is among `missing`."""
        pattern = re.compile(rf"(?:^|\.)(?:{self.blocks})$")
        modules = dict(model.named_modules())
        found = {path: self._block(model, path, modules) for path in modules if pattern.search(path)}
        needed = [role for role in ("o", "f2") if role not in self.missing]
        blocks = {path: block for path, block in found.items() if all(block.modules[role] for role in needed)}
        return Roles(
            blocks=tuple(blocks.values()),
            embedding=self.embedding if self.embedding in modules else None,
            head=tuple(head),
            required_flags=tuple(flag for path in blocks for flag in self._flags(path, modules)),
        )

    def _block(self, model: nn.Module, path: str, modules: Mapping[str, nn.Module]) -> Block:
        names = {role: getattr(self, role) for role in BLOCK_ROLES}
        names = {role: (name,) if isinstance(name, str) else name for role, name in names.items()}
        found = {
            role: tuple(RoleModule(f"{path}.{name}") for name in of_role if name and f"{path}.{name}" in modules)
            for role, of_role in names.items()
        }
        fused, missing = f"{path}.{self.qkv}", self.missing
        if self.qkv and fused in modules:
            if widths := self.widths(model, modules[fused]):
                found |= _fused(fused, widths)
            else:
                missing = {**missing, **dict.fromkeys("qkv", HEAD_BY_HEAD.format(type(model).__name__))}
        return Block(found | {"block": (RoleModule(path),)}, missing)

    def _flags(self, path: str, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
        for flag in self.required_flags:
            module, _, attribute = f"{path}.{flag}".rpartition(".")
            if hasattr(modules.get(module), attribute):
                yield module, attribute


HEAD_BY_HEAD = (
    "{} keeps q, k and v of each head together in one layer; give the layers as targets, such as [attn.qkv, attn.proj]"
)


def _fused(path: str, widths: tuple[int, int, int]) -> dict[str, tuple[RoleModule, ...]]:
    q, k, v = widths
    rows = {"q": (0, q), "k": (q, q + k), "v": (q + k, q + k + v)}
    return {role: (RoleModule(path, of_role),) for role, of_role in rows.items()}


def thirds(qkv: nn.Module) -> tuple[int, int, int]:
    shape = linear_shape(qkv)
    assert shape is not None, "the qkv of an architecture is a linear layer"
    third = shape[0] // 3
    return third, third, third


def _targets(modules: list[RoleModule], whole: bool) -> Iterator[Target]:
    """One target for each path, in the order of the first module with that path."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for module in modules:
        rows.setdefault(module.path, []).extend([module.rows] if module.rows else [])
    for path, slices in rows.items():
        yield Target(path, tuple(slices) if slices and not whole else None)


def classifier_of(model: nn.Module) -> tuple[str, ...]:
    """The paths of the modules that a model's `get_classifier` returns, as timm's models have it; else none."""
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if get_classifier else ()
    heads = found if isinstance(found, (tuple, list)) else (found,)
    return tuple(path for path, module in model.named_modules() if path and any(module is head for head in heads))
