"""Adapters on the embedded digits for each r and d, trained once each, and any saved adapter loaded again."""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn
from transformers import AutoConfig

import capaboost_vision.backbone  # noqa: F401  registers the embedded backbone
from capaboost.runs.settings import VtabRun
from capaboost.runs.trainings import TRAININGS, train
from capaboost.training.checkpoint import differences
from capaboost.training.result import read_result
from capaboost.training.run_folder import RESULT
from capaboost.training.settings import nested, parse_assignments, to_dict
from capaboost_core import UserError, load_adapter
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from capaboost_core.adapter_files.disk import read_record, read_shapes
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.method import find_method
from capaboost_core.plan import in_prefix
from capaboost_text.encoders import HEADS

Shapes = dict[str, tuple[int, ...]]
VTAB = TRAININGS["train-vtab"]


def load_saved(folder: Path) -> nn.Module:
    """Load an adapter on a base that timm or transformers builds without pretrained weights.

    Increments, masks and counts are those of the adapter; the model's output is not.

    Raises:
        UserError: If the folder holds no sound adapter, or its base cannot be built here.
    """
    record, shapes = read_record(folder), read_shapes(folder)
    name = record.base_model
    head = {key: shape for key, shape in shapes.items() if any(in_prefix(key, prefix) for prefix in record.plan.head)}
    labels = min((shape[0] for shape in head.values() if len(shape) == 2), default=0)
    base = _timm_model(name, labels) if timm.is_model(name) else _encoder(name, head, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DifferentBaseWarning)  # the weights are random on purpose
        return load_adapter(base, folder)


def _timm_model(name: str, labels: int) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=labels)
    except RuntimeError as error:
        raise UserError(f"timm cannot build {name}: {error}; save the adapter of a model that it knows") from error


def _encoder(name: str, head: Shapes, labels: int) -> nn.Module:
    """The first kind of encoder whose head has the saved head's names and shapes."""
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, num_labels=labels)
    except Exception as error:  # transformers fails in many ways on a damaged file
        raise UserError(
            f"neither timm nor a local folder has the base model {name}; run where its config.json is"
        ) from error
    for kind in HEADS.values():
        try:
            model = kind.from_config(config)
        except ValueError:  # this architecture has no such head
            continue
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        if head.items() <= shapes.items():
            return model
    raise UserError(f"no encoder {name} has the saved head {', '.join(head)}; its base model has changed")


def run_record(folder: Path) -> dict[str, Any]:
    """The fields of a finished run that a report holds."""
    result = read_result(folder / RESULT)
    return {name: result[name] for name in ("task", "metric", "value", "device", "config")}


@dataclass(frozen=True)
class Study:
    """What the runs have in common.

    Attributes:
        folder: Holds the run of r and d in r<r>-d<d>.
        assignments: Any settings of the runs, as section.key=value.
    """

    folder: Path
    epochs: int
    seed: int
    assignments: Sequence[str] = ()

    def train_missing(self, pairs: Sequence[tuple[int, int]]) -> list[Path]:
        """Train the unfinished pairs (r, d), resuming stopped runs.

        Returns:
            The folder of each run.

        Raises:
            UserError: If a setting is wrong, or a finished run has other ones; nothing is trained then.
        """
        self._check_assignments()
        missing = [pair for pair in pairs if not self._finished(*pair)]
        begun = time.monotonic()
        for done, (r, num_tied) in enumerate(missing):
            minutes = (time.monotonic() - begun) / max(done, 1) * (len(missing) - done) / 60
            left = f", about {minutes:.0f} min left" if done else ""
            print(f"run {done + 1} of {len(missing)}: r = {r}, d = {num_tied}{left}", file=sys.stderr)
            self._train(r, num_tied)
        return [self._folder(*pair) for pair in pairs]

    def _check_assignments(self) -> None:
        adapter = parse_assignments(list(self.assignments)).get("adapter", {})
        if not issubclass(find_method(adapter.get("method", LoRA.name)), LoRA):
            raise UserError(
                f"--set adapter.method={adapter['method']}: only lora has increments to report; leave it out"
            )
        for key in ("r", "num_tied"):
            if key in adapter:
                flag = f"--{key.replace('_', '-')}"
                raise UserError(
                    f"--set adapter.{key}={adapter[key]}: the runs differ in it; type {flag} {adapter[key]}"
                )

    def _folder(self, r: int, num_tied: int) -> Path:
        return self.folder / f"r{r}-d{num_tied}"

    def _preset(self, num_tied: int) -> str:
        return "lora" if num_tied == 1 else "capaboost-lora"

    def _train(self, r: int, num_tied: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # the table of one run
            train(self._run(r, num_tied), self._folder(r, num_tied), resume=True, prepare=VTAB.prepare)

    def _finished(self, r: int, num_tied: int) -> bool:
        """Whether the run exists; it must have been made with these settings."""
        path = self._folder(r, num_tied) / RESULT
        if not path.exists():
            return False
        run = self._run(r, num_tied)
        unequal = differences(read_result(path)["config"], to_dict(run))
        if run.train.mixed_precision == "auto":  # a result has what it became on its device
            unequal = [text for text in unequal if not text.startswith("train.mixed_precision:")]
        if unequal:
            raise UserError(f"{path.parent} was run with other settings ({unequal[0]}); choose another --output-dir")
        return True

    def _run(self, r: int, num_tied: int) -> VtabRun:
        asked = {"data.dataset": "digits", "train.epochs": self.epochs, "train.seed": self.seed}
        own = [f"adapter.r={r}", f"adapter.num_tied={num_tied}", *self.assignments]
        return VTAB.load(nested(asked), self._preset(num_tied), own)
