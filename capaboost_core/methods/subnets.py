"""Subnets of NOAH: a width for each part of each block, and the space that they are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

Widths = tuple[int, ...]


class Subnet(NamedTuple):
    """Widths by block, 0 where a block is without the part.

    Attributes:
        lora: Ranks.
        adapter: Widths of bottlenecks.
        prompt: Numbers of prompts.
    """

    lora: Widths
    adapter: Widths
    prompt: Widths


@dataclass(frozen=True)
class Space:
    """Subnets whose parts each stand in the first blocks, as many as one of the depths, with widths of a few choices.

    Attributes:
        dims: The widths.
        depths: Numbers of blocks from the first on.
        blocks: Of the model.
    """

    dims: Widths
    depths: Widths
    blocks: int

    def random(self, random: Random) -> Subnet:
        """A depth for each part, then a width for each of its blocks, all uniform."""
        return Subnet(*(self._grown((), random.choice(self.depths), random) for _ in Subnet._fields))

    def smallest(self) -> Subnet:
        """Of fewest parameters: each part as narrow and as shallow as it can be."""
        depth = min(self.depths)
        return Subnet(*((min(self.dims),) * depth + (0,) * (self.blocks - depth) for _ in Subnet._fields))

    def mutated(self, subnet: Subnet, random: Random, rate: float, depth_rate: float) -> Subnet:
        """A part changes with probability `rate`: each of its widths with that probability again, and its depth with
        `depth_rate`.
        """
        return Subnet(*(self._mutated(part, random, rate, depth_rate) if random.random() < rate else part
                        for part in subnet))  # fmt: skip

    def crossed(self, one: Subnet, other: Subnet, random: Random) -> Subnet:
        """Each part whole from one of the two."""
        return Subnet(*(random.choice(pair) for pair in zip(one, other, strict=True)))

    def _mutated(self, part: Widths, random: Random, rate: float, depth_rate: float) -> Widths:
        kept = part[: self._depth(part)]
        kept = tuple(random.choice(self.dims) if random.random() < rate else width for width in kept)
        depth = random.choice(self.depths) if random.random() < depth_rate else len(kept)
        return self._grown(kept[:depth], depth, random)

    def _grown(self, first: Widths, depth: int, random: Random) -> Widths:
        """The first widths, further ones up to the depth, and zeros."""
        more = tuple(random.choice(self.dims) for _ in range(depth - len(first)))
        return first + more + (0,) * (self.blocks - depth)

    def _depth(self, part: Widths) -> int:
        """Blocks up to the last that has the part."""
        return max((index for index, width in enumerate(part, start=1) if width), default=0)
