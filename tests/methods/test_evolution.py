"""The search finds the best subnet under its budget, never leaves it, and follows from its seed."""

from itertools import product
from random import Random

import pytest

from capaboost.report.subnets import Evolution, Search
from capaboost_core import UserError
from capaboost_core.methods.noah import Space, Subnet

SMALL = Space(dims=(1, 2, 4), depths=(1, 2), blocks=2)
LARGE = Space(dims=(1, 2, 4, 8), depths=(2, 4, 6), blocks=6)
SHORT = Evolution(generations=6, population=20, parents=5, mutated=8, crossed=8)


def cost(subnet):
    return sum(4 * lora + 3 * adapter + prompt for lora, adapter, prompt in zip(*subnet, strict=True))


def score(subnet):
    """Late LoRA, narrow adapters and many prompts are good."""
    late = sum(index * lora for index, lora in enumerate(subnet.lora, start=1))
    return late - sum(subnet.adapter) + 0.5 * sum(subnet.prompt)


def everything(space):
    parts = [widths + (0,) * (space.blocks - depth)
             for depth in space.depths for widths in product(space.dims, repeat=depth)]  # fmt: skip
    return [Subnet(*three) for three in product(parts, repeat=3)]


def search(space, budget, how=SHORT):
    return Search(space, cost, budget, how)


@pytest.mark.parametrize("budget", [8, 12, 20, 30, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_the_best_of_all_within_the_budget(budget, seed):
    found = search(SMALL, budget, how=Evolution(generations=20, population=40)).run(score, seed)
    assert score(found) == max(score(subnet) for subnet in everything(SMALL) if cost(subnet) <= budget)
    assert cost(found) <= budget


def test_nothing_above_the_budget_is_scored_and_nothing_twice():
    asked = []
    best = search(LARGE, 60).run(lambda subnet: asked.append(subnet) or score(subnet), 0)
    assert all(0 < cost(subnet) <= 60 for subnet in asked)
    assert len(asked) == len({*asked}) == SHORT.generations * SHORT.population
    assert score(best) == max(map(score, asked))


def test_the_same_seed_gives_the_same_search_and_another_one_another():
    runs = [search(LARGE, 60) for _ in range(3)]
    found = [run.run(score, seed) for run, seed in zip(runs, (3, 3, 4), strict=True)]
    assert found[0] == found[1]
    assert [*runs[0].scores] == [*runs[1].scores] != [*runs[2].scores]


def test_children_of_the_best_beat_as_many_random_subnets():
    hows = Evolution(), Evolution(mutated=0, crossed=0)
    evolved, random = (sum(score(search(LARGE, 60, how=how).run(score, seed)) for seed in range(3)) for how in hows)
    assert evolved > 1.1 * random


def test_a_space_that_is_exhausted_ends_the_search():
    run = search(Space((1,), (1, 2), 2), 1000, how=Evolution(generations=3, population=50))
    run.run(score, 0)
    assert {*run.scores} == {*everything(run.space)}


def test_a_budget_below_every_subnet_is_refused_in_a_line():
    assert search(SMALL, 8).run(score, 0) == SMALL.smallest()
    with pytest.raises(UserError, match="the smallest subnet has 8 parameters, and the budget is 7; raise it"):
        search(SMALL, 7)
    with pytest.raises(UserError, match="no subnet of 0 parameters or less was found; raise the budget"):
        search(Space((0, 1), (1, 2), 2), 0).run(score, 0)  # one without any part is no subnet


@pytest.mark.parametrize("space", [SMALL, LARGE])
def test_draws_and_mutations_stay_in_the_space(space):
    random, subnet = Random(0), space.smallest()
    for _ in range(300):
        subnet = space.mutated(space.random(random) if random.random() < 0.1 else subnet, random, 0.5, 0.5)
        for part in subnet:
            depth = sum(map(bool, part))
            assert depth in space.depths
            assert {*part[:depth]} <= {*space.dims}
            assert part == part[:depth] + (0,) * (space.blocks - depth)


def test_a_mutation_changes_widths_depths_or_nothing():
    random, subnet = Random(0), LARGE.random(Random(1))
    assert all(LARGE.mutated(subnet, random, 0.0, 1.0) == subnet for _ in range(20))
    depths = [sum(map(bool, part)) for part in subnet]
    changed = [LARGE.mutated(subnet, random, 1.0, 0.0) for _ in range(20)]
    assert all([sum(map(bool, part)) for part in each] == depths for each in changed)
    assert len({*changed}) > 15


def test_a_child_of_two_has_each_part_whole_from_one_of_them():
    random, (one, other) = Random(0), (LARGE.random(Random(seed)) for seed in (1, 2))
    children = {LARGE.crossed(one, other, random) for _ in range(100)}
    assert children == {Subnet(*parts) for parts in product(*zip(one, other, strict=True))}
