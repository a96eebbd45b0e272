"""An adapter's model card, and its folder on the Hugging Face hub, up and down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, snapshot_download
from huggingface_hub.utils import disable_progress_bars

from capaboost.training.result import read_result
from capaboost.training.run_folder import ADAPTER, RESULT
from capaboost.training.tuning import rate_folder
from capaboost_core.adapter_files.disk import CONFIG, OLD_CONFIG, WEIGHTS, config_path
from capaboost_core.adapter_files.record import INFERENCE
from capaboost_core.errors import UserError, reason_of
from capaboost_core.files import write_atomically

CARD = "README.md"
TASKS = {"images": "image-classification", "texts": "text-classification", "language": "text-generation"}
EXAMPLES = {
    "images": 'run.classes, run.predict(["image.jpg"])',
    "texts": 'run.classes, run.predict(["a text"])',
    "language": 'run.predict(["a text to go on from"])',
}

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
print({example})
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
        settings=", ".join(
            f"{key} {adapter[key]}"
            for key in ("r", "alpha", "num_tied", "density", "scaling")
            if adapter.get(key) is not None
        ),
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
        example=EXAMPLES[inference["kind"] if inference else "images"],
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
    name, results = f"{result['method']}-{result['task']}", []
    if kind and result["value"] is not None:
        task = result["task"]
        results = [EvalResult(kind, task, task, result["metric"], result["value"], dataset_split="test")]
    data = ModelCardData(
        library_name="capaboost",
        base_model=_on_the_hub(result["model"], inference),
        pipeline_tag=kind,
        tags=["capaboost", "peft", result["method"]],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


HUB = "hf-hub:"  # timm's prefix
FILES = (WEIGHTS, INFERENCE, CARD)  # and the record


def adapter_folder(run: str | Path) -> Path:
    """The adapter's folder of a run, or of the best run of a grid of rates; of any other folder itself."""
    folder = Path(run)
    if (folder / RESULT).is_file() and not (folder / ADAPTER).is_dir():
        folder = rate_folder(folder, read_result(folder / RESULT)["config"]["train"]["lr"])
    return folder / ADAPTER if (folder / ADAPTER).is_dir() else Path(run)


def push_to_hub(
    run: str | Path, repo_id: str, private: bool = False, token: str | None = None, endpoint: str | None = None
) -> str:
    """Upload a run's adapter, its model card and what `load_run` needs.

    Args:
        run: A run's folder, or an adapter's.
        repo_id: `user/name`; it is made if there is none yet.
        private: Of a repository that is made.
        token: Of the hub; None takes that of `hf auth login`.
        endpoint: Of another server with the hub's interface.

    Returns:
        The address of the commit.

    Raises:
        UserError: If the folder holds no adapter, or the hub refuses.
    """
    folder = adapter_folder(run)
    record = config_path(folder).name
    missing = [name for name in (WEIGHTS, record) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}; give a run's folder, or one that save_adapter wrote")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=[*FILES, record], commit_message="CapaBoost adapter"
        )
    except Exception as error:  # hub clients fail in many ways
        raise UserError(
            f"cannot upload to {repo_id} ({reason_of(error)}); check the network and HF_ENDPOINT, "
            "log in with `hf auth login`, and give user/name"
        ) from error
    return str(commit)


def fetch(name: str | Path, endpoint: str | None = None) -> Path:
    """The local folder of an adapter: itself, or of `hf-hub:user/name[@revision]` the hub's cache of its files.

    Raises:
        UserError: If the hub has no such adapter, or cannot be reached.
    """
    if not str(name).startswith(HUB):
        return Path(name)
    repo_id, _, revision = str(name).removeprefix(HUB).partition("@")
    try:
        with disable_progress_bars():  # of a few small files
            return Path(
                snapshot_download(
                    repo_id, revision=revision or None, allow_patterns=[*FILES, CONFIG, OLD_CONFIG], endpoint=endpoint
                )
            )
    except Exception as error:  # hub clients fail in many ways
        raise UserError(
            f"cannot get {name} ({reason_of(error)}); check the name, the network and the token"
        ) from error
