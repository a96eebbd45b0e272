"""Adapters on the Hugging Face hub: the four files of an adapter's folder, up and down."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from capaboost.model_card import CARD
from capaboost_core.adapter_files.disk import CONFIG, WEIGHTS
from capaboost_core.adapter_files.inference import INFERENCE
from capaboost_core.errors import UserError, reason_of
from capaboost_core.training.lr_grid import rate_folder
from capaboost_core.training.result import read_result
from capaboost_core.training.run_folder import ADAPTER, RESULT

HUB = "hf-hub:"  # timm's prefix
FILES = (WEIGHTS, CONFIG, INFERENCE, CARD)


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
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}; give a run's folder, or one that save_adapter wrote")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="CapaBoost adapter"
        )
    except Exception as error:  # hub clients fail in many ways
        raise UserError(
            f"cannot upload to {repo_id} ({reason_of(error)}); log in with `hf auth login`, and give user/name"
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
        return Path(
            snapshot_download(repo_id, revision=revision or None, allow_patterns=list(FILES), endpoint=endpoint)
        )
    except Exception as error:  # hub clients fail in many ways
        raise UserError(
            f"cannot get {name} ({reason_of(error)}); check the name, the network and the token"
        ) from error
