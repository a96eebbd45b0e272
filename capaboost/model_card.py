"""The model card beside a run's adapter: what it is, what was measured, and how to use it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from capaboost_core.files import write_atomically

CARD = "README.md"
TASKS = {"images": "image-classification", "texts": "text-classification"}

TEXT = """---
{data}
---

# {method} on {task}

An adapter of `{base}`, trained by [CapaBoost](https://arxiv.org/abs/2407.01320): {formula}.

| | |
|---|---|
| method | {method}, {settings} |
| {metric} | {value} ({split}; seed {seed}, one run: no interval) |
| trained parameters | {trainable:,} ({percent:.2f} % of the model), and a head of {head:,} |
| epochs | {epochs}, learning rate {rate} |
| seed of the masks | {mask_seed} |
| device | {device} |
| versions | {versions} |

## Use it

```python
from capaboost import load_run

run = load_run("FOLDER")  # this folder, or "hf-hub:user/name"
print(run.classes, run.predict([{example}]))
```

`capaboost predict FOLDER INPUT...` does the same on the command line. In a model of your own:
`capaboost_core.load_adapter(base_model, "FOLDER")`.

## Data and licence

Trained on `{task}` ({split}). Base model and data have terms of their own. The adapter's licence is not stated here:
add `license:` above once you have chosen one.

Trained by `{command}`.
"""


def write_card(folder: Path, result: dict[str, Any], inference: dict[str, Any] | None) -> None:
    """Write the card into an adapter's folder.

    Args:
        folder: The adapter's.
        result: As `result.json` has it.
        inference: As `inference.json` has it; None for a task that `load_run` does not know.
    """
    text = card_text(result, inference)
    write_atomically(folder / CARD, lambda file: file.write(text.encode()))


def card_text(result: dict[str, Any], inference: dict[str, Any] | None) -> str:
    """The card of a result."""
    adapter = result["config"]["adapter"]
    tied = adapter.get("num_tied", 1) > 1 or adapter.get("density", 1) < 1
    formula = (
        f"{adapter.get('num_tied')} parallel modules share one trainable weight, each through its own fixed mask"
        if tied
        else "the frozen weights did not change"
    )
    value = result["value"]
    return TEXT.format(
        data=_data(result, inference),
        method=result["method"],
        task=result["task"],
        base=Path(result["model"]).name if result["model"].startswith("/") else result["model"],
        formula=formula,
        settings=", ".join(f"{key} {adapter[key]}" for key in ("r", "alpha", "num_tied", "density") if key in adapter),
        metric=result["metric"],
        value="undefined" if value is None else f"{value:.2f}",
        split=result["split_note"],
        seed=result["seed"],
        trainable=result["trainable_parameters"],
        percent=result["percent_trainable"],
        head=result["head_parameters"],
        epochs=result["epochs"],
        rate=result["config"]["train"]["lr"],
        mask_seed=adapter.get("seed", "none"),
        device=result["device"],
        versions=", ".join(f"{name} {version}" for name, version in result["versions"].items() if version),
        example='"a text"' if inference and inference["kind"] == "texts" else '"image.jpg"',
        command=" ".join(Path(part).name if part.startswith("/") else part for part in result["command"].split()),
    )


def _on_the_hub(model: str, inference: dict[str, Any] | None) -> str | None:
    """The base model's name on the hub; none of a local one, with which the hub would refuse the card."""
    if inference and inference["kind"] == "images":
        return None if ":" in model or model.startswith("capaboost_") else f"timm/{model}"
    return model if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) and not Path(model).exists() else None


def _data(result: dict[str, Any], inference: dict[str, Any] | None) -> str:
    """The card's header, which the hub reads."""
    kind = TASKS.get(inference["kind"]) if inference else None
    name = f"{result['method']}-{result['task']}"
    measured = kind and result["value"] is not None
    results = [
        EvalResult(kind, result["task"], result["task"], result["metric"], result["value"], dataset_split="test")
    ]
    data = ModelCardData(
        library_name="capaboost",
        base_model=_on_the_hub(result["model"], inference),
        pipeline_tag=kind,
        tags=["capaboost", "peft", result["method"]],
        model_name=name if measured else None,
        eval_results=results if measured else None,
    )
    return data.to_yaml().strip()
