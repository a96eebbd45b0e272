"""Roles of the modules of a transformer, such as `q` or `f2`, by which architectures and methods stay independent.

An integration has a table of the modules that have the roles, with a row for each architecture; a method names the
roles that it adapts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.plan import Target, linear_shape

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
    """One transformer block: its modules by role."""

    modules: Mapping[str, tuple[RoleModule, ...]]

    def modules_for(self, roles: Iterable[str]) -> list[RoleModule]:
        """The modules that have one of the roles, role by role."""
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
            grouped-query attention k and v are narrower than q.
        embedding: Full path of the embedding.
        required_flags: Attributes of modules below a block that must be true, such as `attn.qkv_bias_separate`.
    """

    blocks: str
    q: str = ""
    k: str = ""
    v: str = ""
    qkv: str = ""
    o: str = ""
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
    widths: Callable[[nn.Module, nn.Module], tuple[int, int, int]] = lambda model, qkv: _thirds(qkv)

    def roles(self, model: nn.Module, head: Iterable[str] = ()) -> Roles:
        """The roles of a model's modules; a module without o or f2 is not a block."""
        pattern = re.compile(rf"(?:^|\.)(?:{self.blocks})$")
        modules = dict(model.named_modules())
        found = {path: self._block(model, path, modules) for path in modules if pattern.search(path)}
        blocks = {path: block for path, block in found.items() if block.modules["o"] and block.modules["f2"]}
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
        fused = f"{path}.{self.qkv}"
        if self.qkv and fused in modules:
            found |= self._fused(model, fused, modules[fused])
        return Block(found | {"block": (RoleModule(path),)})

    def _fused(self, model: nn.Module, path: str, layer: nn.Module) -> dict[str, tuple[RoleModule, ...]]:
        q, k, v = self.widths(model, layer)
        rows = {"q": (0, q), "k": (q, q + k), "v": (q + k, q + k + v)}
        return {role: (RoleModule(path, of_role),) for role, of_role in rows.items()}

    def _flags(self, path: str, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
        for flag in self.required_flags:
            module, _, attribute = f"{path}.{flag}".rpartition(".")
            if hasattr(modules.get(module), attribute):
                yield module, attribute


def _thirds(qkv: nn.Module) -> tuple[int, int, int]:
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
