"""The roles that architectures and methods share: which layers of a transformer play which role.

An integration says where the roles are, in a table with a row for each architecture; a method says which roles it
takes. Neither knows the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.plan import Target, linear_shape

# The six matrices of a block: attention's four, and the two of the feed-forward part (f1 is a pair where it is gated).
MATRICES = ("q", "k", "v", "o", "f1", "f2")
# Beside them: the whole self-attention; the norm between it and the feed-forward part; the module that is given what
# the feed-forward part reads; the norm of the residual sum after that, where an architecture norms after the sum; the
# dropouts that follow o and f2. The block itself plays `block`.
BLOCK_ROLES = (*MATRICES, "attention", "attention_norm", "feed_forward", "norm", "o_dropout", "f2_dropout")


@dataclass(frozen=True)
class Place:
    """A module that plays a role, or the rows (start, stop) of its output that do, as q in a fused qkv."""

    path: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Block:
    """One transformer block: its places by role."""

    places: Mapping[str, tuple[Place, ...]]

    def modules_for(self, roles: Iterable[str]) -> list[Place]:
        """The places of the roles that the block has, role by role."""
        return [place for role in roles for place in self.places.get(role, ())]


@dataclass(frozen=True)
class Roles:
    """The parts of a model.

    Attributes:
        blocks: In the order of the model.
        embedding: Path of the embedding of tokens or patches.
        head: Path prefixes of what a task trains with any method.
        required_flags: (module path, attribute) flags to set to true, without which a class reads a layer's weight
            without calling the layer.
        missing: Without blocks, what to say to a method that needs them.
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
            roles: Words of BLOCK_ROLES, or `block`.
            whole: Take a fused layer as one, whichever of its parts is asked for.

        Raises:
            UserError: If the blocks are not known.
        """
        roles = tuple(roles)
        return tuple(target for block in self.each_block() for target in _targets(block.modules_for(roles), whole))


@dataclass(frozen=True)
class Architecture:
    """A row of an integration's table: the paths of the roles, relative to a block.

    Of several paths those count that a block has.

    Attributes:
        blocks: Regular expression of the last parts of a block's path.
        qkv: A layer whose output is q, k and v side by side.
        widths: Their widths, of the model and that layer; by default thirds. With grouped-query attention
            k and v are narrower than q.
        embedding: Its full path.
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
    widths: Callable[[nn.Module, nn.Module], tuple[int, int, int]] = lambda model, qkv: (
        (linear_shape(qkv)[0] // 3,) * 3
    )

    def roles(self, model: nn.Module, head: Iterable[str] = ()) -> Roles:
        """The roles of a model's layers; a module without o or f2 is not a block."""
        pattern = re.compile(rf"(?:^|\.)(?:{self.blocks})$")
        modules = dict(model.named_modules())
        below = {path: self._block(model, path, modules) for path in modules if pattern.search(path)}
        blocks = {
            path: block for path, block in below.items() if block.modules_for(["o"]) and block.modules_for(["f2"])
        }
        return Roles(
            blocks=tuple(blocks.values()),
            embedding=self.embedding if self.embedding in modules else None,
            head=tuple(head),
            required_flags=tuple(flag for path in blocks for flag in self._flags(path, modules)),
        )

    def _block(self, model: nn.Module, path: str, modules: Mapping[str, nn.Module]) -> Block:
        names = {role: getattr(self, role) for role in BLOCK_ROLES}
        names = {role: (name,) if isinstance(name, str) else name for role, name in names.items()}
        places = {
            role: tuple(Place(f"{path}.{name}") for name in of_role if name and f"{path}.{name}" in modules)
            for role, of_role in names.items()
        }
        fused = f"{path}.{self.qkv}"
        if self.qkv and fused in modules:
            places |= self._fused(model, fused, modules[fused])
        return Block(places | {"block": (Place(path),)})

    def _fused(self, model: nn.Module, path: str, layer: nn.Module) -> dict[str, tuple[Place, ...]]:
        q, k, v = self.widths(model, layer)
        return {"q": (Place(path, (0, q)),), "k": (Place(path, (q, q + k)),), "v": (Place(path, (q + k, q + k + v)),)}

    def _flags(self, path: str, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
        for flag in self.required_flags:
            module, _, attribute = f"{path}.{flag}".rpartition(".")
            if hasattr(modules.get(module), attribute):
                yield module, attribute


def _targets(places: list[Place], whole: bool) -> Iterator[Target]:
    """One target for each path, in the order in which the paths come first."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for place in places:
        rows.setdefault(place.path, []).extend([place.rows] if place.rows else [])
    for path, slices in rows.items():
        yield Target(path, tuple(slices) if slices and not whole else None)


def classifier_of(model: nn.Module) -> tuple[str, ...]:
    """The paths of what a model names by `get_classifier`, as timm's do: one module, or several; else none."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else ()
    heads = found if isinstance(found, (tuple, list)) else (found,)
    return tuple(path for path, module in model.named_modules() if path and any(module is head for head in heads))
