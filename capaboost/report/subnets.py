"""The second stage of NOAH: an evolutionary search for the best subnet of a trained supernet under a budget.

The search is that of Zhang et al. (2022, arXiv 2206.04673), scored on the rows for selection.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from capaboost.report.cost import ModelFactory
from capaboost.runs.settings import VtabRun
from capaboost.runs.vtab import prepare
from capaboost.training.experiment import TaskSetup
from capaboost.training.optimize import make_accelerator
from capaboost.training.processes import on_main
from capaboost.training.run_folder import to_json
from capaboost_core.adapter_files.load import load_adapter
from capaboost_core.errors import UserError
from capaboost_core.files import write_atomically
from capaboost_core.methods.noah import NOAH, NOAHSupernet, Space, Subnet, cut, parts_of


class SubnetCosts:
    """The trained parameters of any subnet, exactly those of the method `supernet.fixed(subnet)`, without the head.

    Masks follow from a part's path and shape, so what it trains does not depend on the other parts.

    Args:
        subject: The base model, on the meta device.
        supernet: The method.

    Attributes:
        blocks: Of the model.

    Raises:
        UserError: If the model does not take the method.
    """

    def __init__(self, subject: ModelFactory, supernet: NOAHSupernet):
        widths = filter(None, supernet.dims)
        self.counts = {width: _counts(subject, NOAH(r=width, **supernet.shared())) for width in widths}
        self.blocks = len(next(iter(self.counts.values()))[0])

    def __call__(self, subnet: Subnet) -> int:
        return sum(
            self.counts[width][part][block]
            for part, widths in enumerate(subnet)
            for block, width in enumerate(widths)
            if width
        )


def _counts(subject: ModelFactory, method: NOAH) -> list[list[int]]:
    """Of each kind of part by block."""
    model = subject.inject(subject.build(), method)
    return [[sum(p.numel() for p in part.added()) for part in parts] for parts in parts_of(model)]


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


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        subnet: The best one.
        value: Its score, in the supernet's weights.
        parameters: What it trains, without the head.
        scored: How many were scored.
    """

    subnet: Subnet
    value: float
    parameters: int
    scored: int


def search_subnet(run: VtabRun, adapter: Path, search: Search, record: Path) -> Found:
    """Search with the run's seed, each subnet scored as the supernet is in training.

    Args:
        run: The supernet's.
        adapter: Folder of its trained weights.
        search: Space, budget and sizes.
        record: A file for request and result; a result that is there for the same request is returned.

    Raises:
        UserError: If no subnet is within the budget, or the supernet cannot be loaded.
    """
    request = {"budget": search.budget, "seed": run.train.seed, **asdict(search.how)}
    stored = _stored(record)
    if stored.get("request") == request:
        return Found(**stored["found"] | {"subnet": Subnet(*map(tuple, stored["found"]["subnet"]))})
    accelerator = make_accelerator(run.train, record.parent)
    set_seed(run.train.seed)  # a base without pretrained weights is that of the training
    setup = prepare(run, accelerator)
    load_adapter(setup.model, adapter).to(accelerator.device).eval()
    with torch.no_grad(), accelerator.autocast(), _bar(search.how, accelerator.is_main_process) as bar:
        best = search.run(_score(setup, bar), run.train.seed)
    found = Found(best, search.scores[best], search.cost(best), len(search.scores))
    text = to_json({"request": request, "found": asdict(found)}, indent=1) + "\n"
    on_main(lambda: write_atomically(record, lambda file: file.write(text.encode())))
    return found


def _stored(record: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(record.read_text(encoding="utf-8"))
    return {}


def _score(setup: TaskSetup, bar: tqdm) -> Callable[[Subnet], float]:
    best = float("-inf")

    def score(subnet: Subnet) -> float:
        nonlocal best
        cut(setup.model, subnet)
        value = setup.task.evaluate(setup.model)[setup.select_by]
        best = max(best, value)
        bar.set_postfix(best=f"{best:.2f}", refresh=False)
        bar.update()
        return value

    return score


def _bar(how: Evolution, shown: bool) -> tqdm:
    """Over all that are scored at most, with the time left."""
    return tqdm(
        total=how.generations * how.population, desc="search", unit=" subnets", disable=None if shown else True
    )
