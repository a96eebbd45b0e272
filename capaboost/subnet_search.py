"""The second stage of NOAH: the best subnet of a trained supernet under a budget, on the rows for selection."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from capaboost.vtab_run import VtabRun
from capaboost_core.adapter_files.load import load_adapter
from capaboost_core.files import write_atomically
from capaboost_core.methods.evolution import Evolution, Search
from capaboost_core.methods.sliced import cut
from capaboost_core.methods.subnets import Subnet
from capaboost_core.training.experiment import TaskSetup
from capaboost_core.training.json_text import to_json
from capaboost_core.training.optimize import make_accelerator
from capaboost_core.training.processes import on_main
from capaboost_vision.experiment import prepare


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
    return tqdm(total=how.generations * how.population, desc="search", unit=" subnets", disable=not shown)
