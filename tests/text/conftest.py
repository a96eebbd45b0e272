"""A folder that `datasets` takes for a repository of the hub."""

import json

import datasets
import pytest


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """A function (name, config, split, rows) that writes a split below the current folder; out of it, no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def write(name, config, split, rows):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entry = {"config_name": config or "default", "data_files": [{"split": split, "path": f"{split}.jsonl"}]}
        (folder / "README.md").write_text(f"---\nconfigs: {json.dumps([entry])}\n---\n")

    return write
