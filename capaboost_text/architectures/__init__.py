"""Architectures as configuration files, so that counting needs neither weights nor a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaboost_core.errors import UserError, reason_of

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path(__file__).parent
SHIPPED = {
    "roberta-base": FOLDER / "roberta-base.json",
    "FacebookAI/roberta-base": FOLDER / "roberta-base.json",
    "microsoft/deberta-v3-base": FOLDER / "deberta-v3-base.json",
}


def is_known(name_or_path: str) -> bool:
    """True for the name of a shipped architecture, and for a folder with a config.json."""
    return name_or_path in SHIPPED or (Path(name_or_path) / "config.json").is_file()


def build(name_or_path: str, task: str = "sequence-classification", **changes: Any) -> nn.Module:
    """A transformers encoder with a head and random weights, or none within `torch.device("meta")`.

    Args:
        name_or_path: A name in `SHIPPED`, or a folder with a config.json.
        task: A head's name, as in `capaboost_text.from_pretrained`.
        **changes: Settings of the configuration to replace, such as `num_labels`.

    Raises:
        UserError: If the name, the task or the configuration is not usable.
    """
    from transformers import AutoConfig  # takes seconds to import, which a look at the names need not wait for

    from capaboost_text.encoders import HEADS

    if not is_known(name_or_path):
        raise UserError(f"no architecture {name_or_path!r}; type one of {', '.join(SHIPPED)}, or a folder's path")
    if task not in HEADS:
        raise UserError(f"task is {task!r}; type one of: {', '.join(HEADS)}")
    try:
        config = AutoConfig.from_pretrained(SHIPPED.get(name_or_path, name_or_path), **changes)
        config.name_or_path = name_or_path
        return HEADS[task].from_config(config)
    except Exception as error:  # transformers fails in many ways on a damaged file
        raise UserError(
            f"cannot build {name_or_path} ({reason_of(error)}); give a folder with a sound config.json"
        ) from error
