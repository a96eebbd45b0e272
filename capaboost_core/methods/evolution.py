"""The evolutionary search of NOAH (Zhang et al., 2022, arXiv 2206.04673): the best subnet under a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from capaboost_core.errors import UserError
from capaboost_core.methods.subnets import Space, Subnet

TRIES = 1000  # draws in a row that are not new or above the budget, after which a generation stays smaller


@dataclass(frozen=True)
class Evolution:
    """How long a search is, and how its generations come about.

    The defaults are the authors' (ZhangYuanhan-AI/NOAH evolution.py:336-343, of VTAB-1k
    configs/NOAH/VTAB/search/slurm_search_vtab.sh at e9c55f3).

    Attributes:
        generations: Times that a population is scored.
        population: New subnets of a generation, those that are neither mutated nor crossed being random.
        parents: The best of all so far, which the next are made of.
        mutated: How many come from one of them.
        crossed: How many come from two of them.
        rate: Probability that a part changes in a mutation, and each width in it.
        depth_rate: Probability that its depth does.
    """

    generations: int = 15
    population: int = 50
    parents: int = 10
    mutated: int = 25
    crossed: int = 25
    rate: float = 0.2
    depth_rate: float = 0.4


@dataclass
class Search:
    """The search for the subnet of the largest score that costs no more than a budget.

    It follows from the seed and the scores alone. No subnet is scored twice, and none above the budget; of equal ones
    the first counts.

    Args:
        space: What is searched.
        cost: Of a subnet, in the unit of the budget.
        budget: What it may cost.
        how: Sizes and probabilities.

    Attributes:
        scores: All scored so far, in their order.

    Raises:
        UserError: If the smallest subnet is above the budget.
    """

    space: Space
    cost: Callable[[Subnet], int]
    budget: int
    how: Evolution = Evolution()
    scores: dict[Subnet, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = self.cost(self.space.smallest())
        if least > self.budget:
            raise UserError(
                f"the smallest subnet has {least:,} parameters, and the budget is {self.budget:,}; raise it, or lower "
                "dims or depths"
            )

    def run(self, score: Callable[[Subnet], float], seed: int) -> Subnet:
        """The best subnet of all generations.

        Args:
            score: Of a subnet; larger is better.
            seed: Of the draws.

        Raises:
            UserError: If none was found within the budget.
        """
        random = Random(seed)
        found = self._take(self.space.smallest, 1, score)
        for generation in range(self.how.generations):
            found = self._take_children(random, score) if generation else found
            self._take(lambda: self.space.random(random), self.how.population - found, score)
            if not self.scores:
                raise UserError(f"no subnet of {self.budget:,} parameters or less was found; raise the budget")
        return self.best(1)[0]

    def best(self, number: int) -> list[Subnet]:
        """Those of the largest scores so far."""
        return sorted(self.scores, key=self.scores.__getitem__, reverse=True)[:number]

    def _take_children(self, random: Random, score: Callable[[Subnet], float]) -> int:
        how, parents = self.how, self.best(self.how.parents)

        def mutated() -> Subnet:
            return self.space.mutated(random.choice(parents), random, how.rate, how.depth_rate)

        def crossed() -> Subnet:
            return self.space.crossed(random.choice(parents), random.choice(parents), random)

        return self._take(mutated, how.mutated, score) + self._take(crossed, how.crossed, score)

    def _take(self, draw: Callable[[], Subnet], number: int, score: Callable[[Subnet], float]) -> int:
        """Score up to so many new subnets within the budget; returns how many were found."""
        found = failures = 0
        while found < number and failures < TRIES:
            subnet = draw()
            if subnet in self.scores or not 0 < self.cost(subnet) <= self.budget:
                failures += 1
                continue
            self.scores[subnet] = score(subnet)
            found, failures = found + 1, 0
        return found
