"""Neural prompt search: find widths of LoRA, adapter and prompts for each block of a timm ViT, and train them.

Examples:
  capaboost noah --dataset dtd --budget 0.43M
  capaboost noah --dataset digits --budget 40k --epochs 10 --generations 5 --population 20
  capaboost noah --dataset shapes_joint --source rendered --budget-percent 1
  capaboost noah --dataset cifar --method capaboost-noah --budget 0.43M --set adapter.dims=[5,10,20]

Three stages, as in arXiv 2206.04673. supernet/: training on train800, another random subnet each step. search.json:
evolution, scored on val200. subnet/: the best subnet from scratch, as `train-vtab --config subnet.yaml` trains it, and
the only look at the test rows. Flags and --set are those of train-vtab and hold for both trainings, but for --epochs,
--lr and --lr-grid, which are the subnet's; adapter.dims and adapter.depths say what is searched. The same command with
--resume goes on after a stop; a search that was stopped starts anew.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from capaboost.budget import budget_of
from capaboost.command_line import add_run_flags, at_least_one, exit_code, make_parser, print_settings, run_and_show
from capaboost.commands.train_vtab import GRID, add_data_flags, load

if TYPE_CHECKING:
    from capaboost.report.subnets import Found, Search
    from capaboost.runs.settings import VtabRun

SUPERNET, SEARCH, SUBNET = "supernet", "search.json", "subnet"
LONGER = 5  # the authors train a supernet for 500 epochs and a subnet for 100


def noah_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog, add_help=False)
    add = parser.add_argument
    add_data_flags(parser)
    add("--supernet-epochs", type=at_least_one, metavar="N", help=f"default: {LONGER} times those of the subnet")
    add("--supernet-lr", type=float, metavar="RATE", help="default: the settings file's for noah-supernet")
    add("--generations", type=at_least_one, default=15, metavar="N", help="of the search (default: 15)")
    add("--population", type=at_least_one, default=50, metavar="N", help="subnets of each generation, made "
        "from the best found so far, a fifth as many (default: 50)")  # fmt: skip
    add_run_flags(parser, GRID, "runs/noah/<dataset>/<model>/<method>-seed<seed>", "capaboost.runs.settings.VtabRun")
    return parser


def noah(options: argparse.Namespace) -> None:
    """The three stages, after all settings are checked."""
    subnet, supernet = settings(options)
    if options.print_config:
        return print_settings(supernet)
    from capaboost.console import quiet
    from capaboost.report.subnets import search_subnet
    from capaboost.runs.vtab import prepare
    from capaboost.training.experiment import run_experiment
    from capaboost.training.processes import on_device
    from capaboost.training.run_folder import ADAPTER, check_folder, run_folder
    from capaboost_core.methods.noah import NOAHSupernet

    search, data, model = search_of(supernet, options), supernet.data, supernet.model
    folder = options.output_dir or run_folder("noah", data.dataset, model.name, subnet.adapter, subnet.train.seed)
    for stage in (SUPERNET, SUBNET):
        check_folder(folder / stage, options.resume)
    with quiet(options.quiet), on_device(options.device):
        run_experiment(supernet, folder / SUPERNET, options.resume, prepare)
        found = search_subnet(supernet, folder / SUPERNET / ADAPTER, search, folder / SEARCH)
        assert isinstance(supernet.adapter, NOAHSupernet)
        subnet = dataclasses.replace(subnet, adapter=supernet.adapter.fixed(found.subnet))
        say(subnet, found, folder)
    options.output_dir = folder / SUBNET
    run_and_show("train-vtab", subnet, options)


def search_of(supernet: VtabRun, options: argparse.Namespace) -> Search:
    """The search that the flags ask for.

    Raises:
        UserError: If the budget is no number, or below every subnet, or the model does not take the method.
    """
    from capaboost.budget import subject_of
    from capaboost.report.sizes import entries_of
    from capaboost.report.subnets import Evolution, Search, SubnetCosts
    from capaboost_core.methods.noah import NOAHSupernet

    subject, method, size, budget = subject_of(supernet), supernet.adapter, options.population, budget_of(options)
    assert isinstance(method, NOAHSupernet)
    assert budget is not None
    cost = SubnetCosts(subject, method)
    how = Evolution(options.generations, size, max(1, size // 5), size // 2, size // 2)
    return Search(method.space(cost.blocks), cost, entries_of(subject, method, budget), how)


def settings(options: argparse.Namespace) -> tuple[VtabRun, VtabRun]:
    """The runs of the subnet, whose widths are still to be found, and of the supernet.

    Raises:
        UserError: If a setting is wrong, or the method has no supernet.
    """
    from capaboost_core.errors import UserError
    from capaboost_core.methods import PRESETS

    method = options.method or "noah"
    if f"{method}-supernet" not in PRESETS:
        raise UserError(f"method {method} has no supernet; type --method noah or capaboost-noah")
    own = [text for text in options.set if not text.strip().startswith("adapter.")]
    subnet = load(_with(options, method=method, set=own))
    selecting = ["data.protocol=select", "train.test=false"]
    supernet = load(_with(
        options, method=f"{method}-supernet", set=[*options.set, *selecting], protocol=None, lr=options.supernet_lr,
        epochs=options.supernet_epochs or LONGER * subnet.train.epochs,
    ))  # fmt: skip
    return subnet, supernet


def _with(options: argparse.Namespace, **changes: object) -> argparse.Namespace:
    return argparse.Namespace(**vars(options) | {"budget": None, "budget_percent": None} | changes)


def say(run: VtabRun, found: Found, folder: Path) -> None:
    """Print what was found, and write it as settings of train-vtab."""
    import yaml

    from capaboost.training.processes import on_main
    from capaboost.training.settings import to_dict
    from capaboost_core.files import write_atomically

    file = folder / f"{SUBNET}.yaml"
    text = f"# capaboost train-vtab --config {file.name}\n" + yaml.safe_dump(to_dict(run), sort_keys=False)

    def write() -> None:
        write_atomically(file, lambda out: out.write(text.encode()))
        print(f"found {found.parameters:,} parameters, {found.value:.2f} in the supernet, of {found.scored} scored")
        for name, widths in found.subnet._asdict().items():
            print(f"  {name:8}{' '.join(f'{width:3}' for width in widths)}")
        print(f"settings: {file}", flush=True)

    on_main(write)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    parser = noah_parser(prog)
    options = parser.parse_args(arguments)
    if not (options.dataset or options.config or options.data):
        parser.error("give --dataset NAME, such as --dataset dtd, or --config FILE")
    if budget_of(options) is None:
        parser.error("give --budget N, such as --budget 0.43M, or --budget-percent X")
    if options.nearest:
        parser.error("--nearest means nothing to a search, which stays within its budget; leave it out")
    return exit_code(lambda: noah(options))
