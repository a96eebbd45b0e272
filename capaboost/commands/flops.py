"""Report what each method costs: trained parameters, multiply-adds, adapter file, optimizer state, memory.

Examples:
  capaboost flops --model vit_base_patch16_224 --methods lora,capaboost-lora --set adapter.r=8
  capaboost flops --model roberta-base --methods lora,capaboost-lora --set adapter.r=32
  capaboost flops --model microsoft/deberta-v3-base --set adapter.targets=all-linear
  capaboost flops --model vit_small_patch16_224 --batch-size 8 --memory --output runs/small
  capaboost flops --model vit_base_patch16_224 --budget 0.22M
  capaboost flops --paper

No weights, data or network are needed. All is relative to plain LoRA with the same settings. Of a model that the
paper has, its tables follow, with their own settings, beside the numbers counted here and the reason for each
difference; --paper shows the tables of all models.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaboost.budget import add_budget_flags, budget_of, check_nearest
from capaboost.command_line import at_least_one, exit_code, make_parser
from capaboost.runs.settings import shipped

if TYPE_CHECKING:
    from capaboost.report.cost_report import ReportTable
    from capaboost.report.models import Sizes
    from capaboost.report.paper import Comparison
    from capaboost_core.methods import Method

ENDINGS = (".json", ".csv", ".md")


def flops_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    count: dict[str, Any] = {"type": at_least_one, "metavar": "N"}
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help="a timm name, roberta-base, microsoft/deberta-v3-base, or a "
        "folder with a transformers config.json")  # fmt: skip
    what.add_argument("--paper", action="store_true", help="all of the paper's tables beside what is counted here")
    add("--methods", default="all", metavar="PRESETS", help="such as lora,capaboost-lora (default: all)")
    add("--set", action="append", default=[], metavar="adapter.KEY=VALUE", help="a setting of all methods; what ties "
        "or masks weights leaves the plain methods plain")  # fmt: skip
    add("--batch-size", default=1, **count, help="default: 1")
    add("--sequence-length", **count, help="tokens of a text (default: 128)")
    add("--image-size", **count, help="pixels a side (default: the model's own)")
    add("--classes", default=2, **count, help="of the head (default: 2)")
    add("--memory", action="store_true", help="measure the peak memory of a training step, which takes some seconds "
        "a method")  # fmt: skip
    add("--device", choices=("cpu", "cuda"), help="where memory is measured (default: cuda where there is one)")
    add_budget_flags(parser)
    add("--output", type=Path, metavar="STEM", help="write STEM.json, STEM.csv and STEM.md")
    return parser


def report(options: argparse.Namespace) -> None:
    """Count the chosen methods, after checking that the report can be written."""
    from capaboost.console import check_outputs

    stem = options.output
    check_outputs("--output", *([stem.with_name(f"{stem.name}{ending}") for ending in ENDINGS] if stem else []))
    check_nearest(options)
    (report_paper if options.paper else report_methods)(options)


def report_methods(options: argparse.Namespace) -> None:
    """Count the methods on one model."""
    from capaboost.report.cost_report import choose_methods, make_report
    from capaboost.report.models import Sizes, describe, make_subject
    from capaboost.report.paper import sheets
    from capaboost.report.sizes import describe_budget, refuse_given, solve
    from capaboost_core.methods.lora import LoRA

    methods, changes = choose_methods(options.methods), adapter_settings(options.set)
    sizes = Sizes(options.batch_size, options.sequence_length, options.image_size, options.classes)
    subject = make_subject(options.model, sizes)
    found: list[str] = []

    def within(config: Method) -> Method:
        budget = budget_of(options)
        if budget is None:
            return config
        refuse_given(config, [f"adapter.{name}" for name in changes])
        found.append(describe_budget(solved := solve(subject, config, budget, options.nearest)))
        return solved.method

    peak, how = memory_probe(options, sizes) if options.memory else (None, "not measured; pass --memory")
    report = make_report(subject, methods, changes, options.methods != "all", peak, within)
    record = {"model": options.model, "inputs": describe(subject), "settings": changes, **asdict(report)}
    comparisons, about_paper = compare_paper(options.model)
    settings = " ".join(options.set) or f"those of the presets, such as adapter.r={LoRA().r}"
    facts = {"model": f"{options.model}, {describe(subject)}", "settings": settings, "peak memory": how}
    facts |= {"budget": "; ".join(text.removeprefix("budget: ") for text in found)} if found else {}
    record["paper"] = [asdict(comparison) for comparison in comparisons]
    finish(options, record, facts | report.facts() | about_paper, [*report.sheets(), *sheets(comparisons)])


def memory_probe(options: argparse.Namespace, sizes: Sizes) -> tuple[Callable[[Method], int], str]:
    """A function that measures the peak memory of a method, and a description of the measurement.

    Raises:
        UserError: If the device is not there.
    """
    import torch

    from capaboost.report.models import make_subject
    from capaboost.report.peak_memory import MEASURED, step_peak_bytes
    from capaboost.training.result import device_name
    from capaboost_core.errors import UserError

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; type --device cpu")
    subject = make_subject(options.model, sizes, device)
    how = f"{MEASURED}; float32, {device_name(torch.device(device))}"
    return lambda config: step_peak_bytes(subject.inject(subject.build(), config), subject.inputs), how


def adapter_settings(assignments: list[str]) -> dict[str, Any]:
    """`["adapter.r=8"]` -> `{"r": 8}`.

    Raises:
        UserError: If a text is not of this form, or of another section.
    """
    from capaboost.training.settings import parse_assignments
    from capaboost_core.errors import UserError

    sections = parse_assignments(assignments)
    for section in sections:
        if section != "adapter":
            raise UserError(f"--set {section}: only the section adapter counts here; type for example adapter.r=16")
    return sections.get("adapter", {})


def report_paper(options: argparse.Namespace) -> None:
    """The paper's numbers next to those counted here."""
    from capaboost.report.paper import sheets

    comparisons, facts = compare_paper()
    finish(options, {"rows": [asdict(comparison) for comparison in comparisons]}, facts, sheets(comparisons))


def compare_paper(model: str | None = None) -> tuple[list[Comparison], dict[str, str]]:
    """The paper's numbers of one model, or of all, and notes on them; both empty for others."""
    from tqdm import tqdm

    from capaboost.report.models import Sizes, architecture, make_subject
    from capaboost.report.paper import PaperCounter, compare, facts, read_tables

    tables = read_tables(shipped("results/paper"))
    if model:
        tables = [table for table in tables if architecture(table.get("model", "")) == architecture(model)]
    rows = compare(tables, PaperCounter(lambda name: make_subject(name, Sizes())))
    comparisons = list(tqdm(rows, desc="the paper's numbers", leave=False, disable=None))
    return comparisons, facts(tables, comparisons) if comparisons else {}


def finish(
    options: argparse.Namespace, record: dict[str, Any], facts: dict[str, str], tables: list[ReportTable]
) -> None:
    """Show the report, and write it if `--output` is given."""
    from capaboost.report.cost_report import show, write_files
    from capaboost.training.result import command_line, git_state, library_versions

    show(facts, tables)
    if options.output:
        origin = {"command": command_line(), "versions": library_versions(), "git": git_state()}
        texts = {"command": origin["command"], "versions": _words(origin["versions"]), "git": _words(origin["git"])}
        paths = write_files(options.output, {**record, "facts": facts, **origin}, facts | texts, tables)
        print(f"written: {', '.join(map(str, paths))}")


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = flops_parser(prog).parse_args(arguments)
    return exit_code(lambda: report(options), "nothing was written")
