"""The state of a run: what its epochs change, which of them is selected, and how all that is saved and restored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from capaboost.console import remark
from capaboost.training.checkpoint import Checkpoints, Expected, Position, State, differences
from capaboost.training.optimize import Stepper, copied
from capaboost.training.result import surroundings
from capaboost.training.run_folder import worth
from capaboost.training.settings import TrainSection
from capaboost.training.sharded import complete
from capaboost_core.account import changing
from capaboost_core.adapter_files.base_model import Fingerprint, base_hash, beside_base, differing
from capaboost_core.adapter_files.base_model import fingerprint as fingerprint_of
from capaboost_core.errors import DivergedError, UserError
from capaboost_core.injection import trainable_parameters
from capaboost_core.task import Hooks
from capaboost_core.wrappers import copy_full


class Selection:
    """Keeps what the first best epoch had, or the last one.

    Args:
        metric: The one that decides, as `worth` has it; without one, nothing is kept.
        last: Keep the last epoch, whatever its metric.
    """

    def __init__(self, metric: str | None, last: bool = False):
        self.metric, self.last = metric, last
        self.best: dict[str, Any] | None = None

    def offer(self, metrics: dict[str, float], weights: Callable[[], dict[str, Any]]) -> None:
        """Keep an epoch's metrics and weights if it is better; a metric that is not a number is worse than any."""
        if not self.metric:
            return
        value = worth(self.metric, float(metrics[self.metric]))
        before = self.best["value"] if self.best else None
        if self.last or before is None or value > before or math.isnan(before) > math.isnan(value):
            self.best = {"value": value, "metrics": metrics, **weights()}


class RunState:
    """The trained parameters, the statistics that move with them, and everything else that a run needs to resume.

    Args:
        accelerator: As `make_accelerator` makes it.
        model: Adapted already.
        settings: How to train.
        steps: Optimizer steps of an epoch.
        fingerprint: The configuration and data of the run.
        select_by: The metric that selects an epoch, if any.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        settings: TrainSection,
        steps: int,
        fingerprint: dict[str, Any],
        select_by: str | None,
    ):
        self.accelerator, self.settings, self.steps, self.fingerprint = accelerator, settings, steps, fingerprint
        self.model, self.beside_base = model, beside_base(model)
        self.base, self.base_hash = fingerprint_of(model, self.beside_base), base_hash(model, self.beside_base)
        self.surroundings = surroundings(accelerator.device) | {"pretrained weights": self.base_hash}
        self.hooks = Hooks(model)
        self.stepper = Stepper(accelerator, model, trainable_parameters(model), settings, steps, self.hooks)
        self.selection, self.metrics = Selection(select_by, settings.select == "last"), {}
        self.train_seconds = self.wall_seconds = 0.0
        self.since = time.monotonic()

    def load(self, checkpoints: Checkpoints) -> tuple[int, Position | None]:
        """Restore the newest sound checkpoint, and print a line about it.

        Returns:
            Finished epochs, and the position in the next one, if it is not its start.

        Raises:
            UserError: If there are checkpoints, but none that this run can go on from.
        """
        expected = Expected(**self._weights(), optimizer=self.stepper.optimizer)
        state, warning = checkpoints.load(self.fingerprint, expected.problem_of)
        folder = checkpoints.newest.parent
        say = remark if self.accelerator.is_main_process else lambda _: None
        if warning:
            say(f"warning: {warning}")
        if state is None:
            self.accelerator.print(f"{folder}: no checkpoint yet, starting from the beginning")
            return 0, None
        step = f", step {state.position['step']} of {self.steps}" if state.position else ""
        self._check_base(state, folder)
        self.accelerator.print(f"{folder}: going on after epoch {state.epoch}{step}")
        changed = differences(state.surroundings, self.surroundings)
        if changed:
            say(f"note: not bit-identical to a run without a stop ({'; '.join(changed)})")
        self._restore(state)
        return state.epoch, Position(**state.position) if state.position else None

    def snapshot(self, epoch: int, position: Position | None = None) -> State:
        """What a checkpoint holds after so many epochs, and so much of the next."""
        now = time.monotonic()
        self.wall_seconds, self.since = self.wall_seconds + now - self.since, now
        return State(
            fingerprint=self.fingerprint,
            surroundings=self.surroundings,
            epoch=epoch,
            position=asdict(position) if position else None,
            stepper=self.stepper.state_dict(),
            best=self.selection.best,
            metrics=self.metrics,
            train_seconds=self.train_seconds,
            wall_seconds=self.wall_seconds,
            base=self.base.to_dict(),
            **self._weights(),
        )

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch that is finished."""
        self.metrics = metrics
        self.selection.offer(metrics, lambda: copied(self._weights()))

    def finish(self) -> dict[str, float]:
        """Restore the selected epoch, if there is one; returns that epoch's metrics."""
        best = self.selection.best
        if best:
            self._assign(best["parameters"], best.get("method", {}))
        return best["metrics"] if best else self.metrics

    def check_finite(self, loss: float, epoch: int) -> None:
        """Refuse to resume from a state that training cannot repair.

        Raises:
            DivergedError: If the loss or a trained parameter is not finite.
        """
        finite = torch.stack([tensor.isfinite().all() for tensor in self._tensors().values()]).all()
        if math.isfinite(loss) and finite:
            return
        what = "a trained parameter is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        raise DivergedError(
            f"{what} in epoch {epoch + 1}; lower train.lr, or set train.max_grad_norm or another train.mixed_precision"
        )

    def _weights(self) -> dict[str, Any]:
        return {"parameters": self._tensors(), "method": self.hooks.state()}

    def _tensors(self) -> dict[str, Tensor]:
        """Looked up anew each time: moving a model to a device replaces its buffers. Sharded ones are gathered."""
        return complete(changing(self.hooks.model))

    def _check_base(self, state: State, folder: Path) -> None:
        others = differing(self.model, self.beside_base, Fingerprint.from_dict(state.base)) if state.base else []
        if others:
            raise UserError(
                f"{folder} was run on other pretrained weights: {len(others)} tensors differ, such as {others[0]}; "
                "give those it began with, or choose another --output-dir"
            )

    def _restore(self, state: State) -> None:
        self._assign(state.parameters, state.method)
        self.stepper.load_state_dict(state.stepper)
        self.selection.best, self.metrics = state.best, state.metrics
        self.train_seconds, self.wall_seconds = state.train_seconds, state.wall_seconds

    @torch.no_grad()
    def _assign(self, parameters: dict[str, Tensor], method: dict[str, Any]) -> None:
        for name, tensor in changing(self.hooks.model).items():
            copy_full(tensor, parameters[name])
        self.hooks.load_state(method)
