"""What stands on a method's page beside the text: picture, cost, models, results, papers' rows, exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from capaboost.tables.read import read_results
from capaboost.tables.rows import Row, make_rows
from capaboost_core import PRESETS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
PAGES = ROOT / "docs" / "methods"
ACCOUNTS = {"ViT-B/16": "vit_base_patch16_224", "RoBERTa-base": "roberta-base"}
UNREAD = ("paper", "accounting", "rank", "reliability", "backbone")  # they hold no result.json of a run


def names() -> list[str]:
    """The pages, CapaBoost-LoRA's first."""
    return sorted((path.stem for path in PAGES.glob("*.md")), key=lambda name: (name != "lora", name))


@cache
def presets_of(name: str) -> list[str]:
    """The presets that a page is about, as its title lists them."""
    title = (PAGES / f"{name}.md").read_text().splitlines()[0].removeprefix("# ")
    listed, each, _ = title.partition(", each also capaboost-")
    found = listed.split(", ")
    found += [f"capaboost-{preset}" for preset in found] if each else []
    if unknown := {*found} - {*PRESETS}:
        raise ValueError(f"docs/methods/{name}.md names {', '.join(sorted(unknown))}, which is no preset")
    return found


@cache
def support() -> dict[str, Any]:
    return json.loads((RESULTS / "support.json").read_text())


def complete(name: str, markdown: str) -> str:
    """The page with all that is generated after its text."""
    presets = presets_of(name)
    picture = f"![The modules of a block of ViT-B/16 that {presets[0]} adapts or trains.]({name}.svg)"
    title, _, text = markdown.partition("\n\n")
    parts = [title, picture, text, *_call(presets), *_cost(presets), *_models(presets), *_measured(presets)]
    return "\n\n".join([*parts, *_quoted(presets)]) + "\n"


def _call(presets: list[str]) -> Iterator[str]:
    """How to use it, and what becomes of a trained model."""
    yield "## Call"
    yield (
        f'```python\nmodel = timm.create_model("vit_base_patch16_224", num_classes=10, capaboost="{presets[0]}")\n'
        f'model = capaboost_text.from_pretrained("roberta-base", num_labels=2, capaboost="{presets[0]}")\n```'
    )
    rows = [(f"`{preset}`", *map(_said, _exports(preset))) for preset in presets]
    yield table(("preset", "starts as the base model", "merges", "written as a plain LoRA"), rows)


def _exports(preset: str) -> tuple[Any, Any, Any]:
    tried = support()["presets"][preset]
    return tried["starts_as_base"], tried["merges"], tried["plain_lora"]


def _said(tried: bool | str) -> str:
    if isinstance(tried, str):
        return f"no: {tried.partition(';')[0]}"
    return "yes" if tried else "no"


@cache
def _accounting(model: str) -> dict[str, Any]:
    return json.loads((RESULTS / "accounting" / "all" / f"{model}.json").read_text())


def _cost(presets: list[str]) -> Iterator[str]:
    rows = [
        (f"`{row['method']}`", model, *_cost_cells(row))
        for model, file in ACCOUNTS.items()
        for preset in presets
        for row in _accounting(file)["rows"]
        if row["method"] == preset
    ]
    if rows:
        yield "## Cost"
        yield table(
            ("preset", "model", "trained", "% of LoRA", "added multiply-adds, effective / executed", "adapter file"),
            rows,
        )
        yield f"With default settings; `{_accounting(ACCOUNTS['ViT-B/16'])['command']}`."


def _cost_cells(row: dict[str, Any]) -> tuple[str, ...]:
    effective, executed = (row[f"added_{kind}_multiply_adds"] / 1e6 for kind in ("effective", "executed"))
    size = row["adapter_file_bytes"] / 2**20
    return (
        f"{row['trainable_parameters']:,}",
        f"{row['percent_of_lora']:.4g}",
        f"{effective:.1f} M / {executed:.1f} M",
        f"{size:.2f} MiB",
    )


def _models(presets: list[str]) -> Iterator[str]:
    """Which of the models that are tried take it; the reasons of the others."""
    found = {model: outcomes[presets[0]] for model, outcomes in support()["models"].items()}
    taken = [f"`{model}`" for model, outcome in found.items() if not isinstance(outcome, str)]
    yield "## Models"
    yield f"Of {len(found)} architectures that were tried, {len(taken)} take it: {', '.join(taken)}."
    refused = [f"- `{model}`: {outcome}" for model, outcome in found.items() if isinstance(outcome, str)]
    if refused:
        yield "Refused:\n\n" + "\n".join(refused)


@cache
def _rows() -> list[tuple[str, Row]]:
    folders = [path for path in sorted(RESULTS.iterdir()) if path.is_dir() and path.name not in UNREAD]
    return [(folder.name, row) for folder in folders for row in make_rows(read_results([folder]))]


def _measured(presets: list[str]) -> Iterator[str]:
    rows = [
        (
            f"`{row.method}`",
            row.task,
            row.model,
            *_value(row),
            f"{row.trainable_parameters:,}",
            row.settings,
            f"`results/{folder}`",
        )
        for folder, row in _rows()
        if row.method in presets
    ]
    if rows:
        yield "## Measured here"
        yield table(("method", "task", "model", "value", "seeds", "trained", "settings", "files"), rows)


def _value(row: Row) -> tuple[str, str]:
    spread = "" if row.std is None else f" ± {row.std:.2g}"
    return f"{row.metric} {row.mean:.4g}{spread}", str(row.seeds)


def _quoted(presets: list[str]) -> Iterator[str]:
    """The rows of CapaBoost's paper, as printed there."""
    rows = []
    for path in sorted((RESULTS / "paper").glob("table-*.json")):
        quoted = json.loads(path.read_text())
        for row in quoted["rows"]:
            if (row.get("build") or {}).get("preset") in presets and row.get("scores"):
                rows.append(
                    (quoted["source"], quoted["title"], row["name"], _settings(row["build"]), _scores(row["scores"]))
                )
    if rows:
        yield "## In CapaBoost's paper"
        yield table(("table", "task", "row", "settings", "printed there"), rows)


def _settings(build: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in build.items() if name != "preset") or "defaults"


def _scores(scores: dict[str, Any]) -> str:
    known = {name: score for name, score in scores.items() if score is not None}
    mean = {name: score for name, score in known.items() if name in ("All", "Average")}
    return ", ".join(f"{name} {score}" for name, score in (mean or known).items())


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    titles = tuple(titles)
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join("| " + " | ".join(re.sub(r"\|", r"\\|", str(cell)) for cell in line) + " |" for line in lines)
