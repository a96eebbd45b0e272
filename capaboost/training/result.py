"""The record of a run, `result.json`: the outcome with everything needed to repeat and assess it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from capaboost.console import is_quiet, show_table, tell
from capaboost.training.checkpoint import Checkpoints, State
from capaboost.training.run_folder import METRICS, RESULT, TENSORBOARD, is_number, to_json, tracker
from capaboost_core.adapter_files.save import WEIGHTS
from capaboost_core.errors import UserError
from capaboost_core.files import explained, read_text, write_atomically
from capaboost_core.injection import parameter_counts

# What a run shows and writes while it trains: a progress bar, metrics.jsonl, TensorBoard logs, checkpoints.


READING_SECONDS = 1.0  # between two readings of the loss


class LossReading:
    """A loss that is read about once a second without making the host wait for the device."""

    def __init__(self, device: torch.device):
        self.event = torch.cuda.Event() if device.type == "cuda" else None
        self.host = torch.zeros((), pin_memory=self.event is not None)
        self.offered = -READING_SECONDS

    def offer(self, loss: Tensor) -> None:
        """Start a copy of the loss, unless the last one is recent or still in progress."""
        now = time.monotonic()
        if now - self.offered < READING_SECONDS or not self.ready():
            return
        self.offered = now
        self.host.copy_(loss, non_blocking=self.event is not None)
        if self.event is not None:
            self.event.record()

    def ready(self) -> bool:
        return self.event is None or self.event.query()


class Progress:
    """A bar over all examples of the run: loss, examples a second, and the time left."""

    def __init__(self, epochs: int, examples: int, done: int, unit: str, device: torch.device, shown: bool):
        self.epochs, self.reading, self.metrics = epochs, LossReading(device), {}
        self.bar = tqdm(
            total=epochs * examples,
            initial=done,
            unit=f" {unit}",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not shown or is_quiet(),
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def start_epoch(self, epoch: int) -> None:
        self.bar.set_description(f"epoch {epoch + 1}/{self.epochs}", refresh=False)

    def advance(self, examples: int, loss: Tensor) -> None:
        self.reading.offer(loss)
        if self.reading.ready():
            self.bar.set_postfix({"loss": f"{float(self.reading.host):.4f}", **self.metrics}, refresh=False)
        self.bar.update(examples)

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Show an epoch's metrics until the next has its own."""
        self.metrics = {name: f"{value:.2f}" for name, value in metrics.items() if value is not None}
        self.bar.set_postfix({"loss": f"{float(self.reading.host):.4f}", **self.metrics})

    def close(self) -> None:
        self.bar.close()


class MetricsFile:
    """`metrics.jsonl`: one JSON object for each finished epoch."""

    def __init__(self, path: Path):
        self.path = path

    def cut(self, epochs: int, last: dict[str, Any]) -> None:
        """Keep only the complete lines of the first epochs: a resumed run writes the later ones again.

        Args:
            epochs: How many.
            last: What the run knows of the last of them, if its line is lost.
        """
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = {line.get("epoch"): line for line in map(_parsed, text.splitlines())}
        kept = [lines[epoch] for epoch in range(1, epochs + 1) if epoch in lines]
        if epochs and epochs not in lines:
            kept.append(last)
        content = "".join(to_json(line) + "\n" for line in kept)
        write_atomically(self.path, lambda file: file.write(content.encode()))

    def add(self, values: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
        with explained("write", self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(to_json(values) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any]:
    """The line's values; none if a crash has truncated it."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


class Record:
    """The files of a run in progress; the main process writes them.

    Nothing is written before the first checkpoint.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, settings: Mapping[str, Any]):
        self.accelerator, self.folder, self.settings = accelerator, folder, settings
        self.checkpoints, self.metrics = Checkpoints(folder), MetricsFile(folder / METRICS)
        self.tracks = self.warned = False

    def start(self, done: int, last: dict[str, float]) -> None:
        """Drop what a stopped run wrote after its last finished epoch, whose metrics are `last`."""
        if self.accelerator.is_main_process:
            self.metrics.cut(done, last)

    def line(self, values: dict[str, float]) -> None:
        """An epoch's metrics. They are written before its checkpoint: a resumed run drops surplus lines."""
        if self.accelerator.is_main_process:
            self.metrics.add(values)
            if tracker() == TENSORBOARD:
                (self.folder / TENSORBOARD).mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
        with self._spared():
            if not self.tracks:
                self._start_tracking(int(values["epoch"]))
                self.tracks = True
            logged = {key: value for key, value in values.items() if key != "epoch"}
            self.accelerator.log(logged, step=int(values["epoch"]))

    def _start_tracking(self, epoch: int) -> None:
        """A resumed run goes on where it was: TensorBoard drops later epochs, the others know it by its folder."""
        chosen, init = tracker(), self.accelerator.init_trackers
        if chosen == TENSORBOARD:
            return init(TENSORBOARD, init_kwargs={TENSORBOARD: {"purge_step": epoch}})
        name = f"{self.folder.name}-{sha256(str(self.folder.resolve()).encode()).hexdigest()[:8]}"
        options: dict[str, Any] = {"name": name, "resume": "allow"}
        options |= {"id": name, "dir": str(self.folder)} if chosen == "wandb" else {}
        return init("capaboost", config=dict(self.settings), init_kwargs={chosen: options})

    def save(self, state: State) -> None:
        if self.accelerator.is_main_process:
            self.checkpoints.save(state)

    def close(self) -> None:
        if self.tracks:
            for tracker in self.accelerator.trackers:  # not end_training, which would end the processes' group too
                with self._spared():
                    tracker.finish()

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        """What is tracked repeats metrics.jsonl, so a run goes on where it cannot be written, with one warning."""
        try:
            yield
        except OSError as error:
            if not self.warned:
                self.warned = True
                tell(f"warning: cannot write {self.folder / TENSORBOARD}: {error.strerror}; {METRICS} has all metrics")


LIBRARIES = ("capaboost", "torch", "timm", "transformers", "accelerate", "safetensors", "numpy")


def library_versions() -> dict[str, str | None]:
    """Versions of Python and the libraries; None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def surroundings(device: torch.device) -> dict[str, Any]:
    """What may change a result by rounding: device, threads and versions."""
    return {"device": device_name(device), "threads": torch.get_num_threads(), "versions": library_versions()}


def git_state() -> dict[str, Any]:
    """Commit of the code and whether it was changed since; both None outside a git checkout."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if commit is None or status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def command_line() -> str:
    """The running command, quoted for a shell; the installed one without the folder that it lies in."""
    program, *arguments = sys.argv
    name = Path(program).name
    return shlex.join([name if name == "capaboost" else program, *arguments])


TABLE_COLUMNS = {
    "task": "task",
    "model": "model",
    "method": "method",
    "protocol": "protocol",
    "value": "value",
    "trainable_parameters": "trainable",
    "percent_trainable": "% trainable",
    "wall_seconds": "seconds",
}


def print_table(results: list[dict[str, Any]]) -> None:
    """Show results, one a row."""
    table = Table()
    for title in TABLE_COLUMNS.values():
        table.add_column(title, overflow="fold")
    for result in results:
        table.add_row(*(_cell(result, name) for name in TABLE_COLUMNS))
    show_table(table)


def _cell(result: dict[str, Any], name: str) -> str:
    value = result[name]
    if name == "value":
        return f"{result['metric']} {'undefined' if value is None else f'{value:.2f}'}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Result:
    """What a run measured, and how.

    Attributes:
        value: The metric on the test split, of which `test_metrics` holds all figures; `metrics` has
            those of the last or the selected epoch.
        selected_by: The one of `metrics` that selected the epoch, if any.
        percent_trainable: 100 * trainable / total, the head in neither.
        wall_seconds: Summed over interruptions.
        split_note: Which rows the splits hold.
        config: Every setting of the run.
        data_hash: Of the rows and labels that the run trained on, where its task knows one.
        weights_hash: Of the pretrained weights, bit for bit: the base as it was before training, without its head.
    """

    task: str
    method: str
    model: str
    seed: int
    protocol: str
    metric: str
    value: float
    trainable_parameters: int
    head_parameters: int
    total_parameters: int
    percent_trainable: float
    epochs: int
    selected_epoch: int
    selected_by: str | None
    metrics: dict[str, float]
    test_metrics: dict[str, float]
    unit: str
    examples_per_second: float
    wall_seconds: float
    adapter_file_bytes: int
    split_note: str
    processes: int
    device: str
    config: dict[str, Any]
    data_hash: str | None = None
    weights_hash: str | None = None
    versions: dict[str, str | None] = field(default_factory=library_versions)
    git: dict[str, Any] = field(default_factory=git_state)
    command: str = field(default_factory=command_line)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the speed is named after the unit, such as `images_per_second`."""
        values = asdict(self)
        values[f"{values.pop('unit')}_per_second"] = values.pop("examples_per_second")
        return values


def counts_of(model: nn.Module) -> dict[str, Any]:
    """The four parameter fields of a result."""
    counts = parameter_counts(model)
    return {
        "trainable_parameters": counts.trainable,
        "head_parameters": counts.head,
        "total_parameters": counts.total,
        "percent_trainable": counts.percent,
    }


def adapter_bytes(folder: Path) -> int:
    """Size of the trained weights' file, head included."""
    return (folder / WEIGHTS).stat().st_size


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Write `result.json` atomically."""
    text = to_json(result, indent=2) + "\n"
    write_atomically(folder / RESULT, lambda file: file.write(text.encode()))
    return folder / RESULT


def read_result(path: Path) -> dict[str, Any]:
    """A result file's content; a value that is not finite is None, as `write_result` has it.

    Raises:
        UserError: If it cannot be read, or somebody changed what resuming and sweeps need of it.
    """
    try:
        result = json.loads(read_text(path), parse_constant=lambda name: None)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or no JSON; delete it to run its task again") from error
    values = result if isinstance(result, dict) else {}
    wrong = [name for name, fits in NEEDED.items() if not fits(values.get(name))]
    if wrong:
        raise UserError(f"{path} lacks a usable {', '.join(wrong)}; delete it to run its task again")
    return result


NEEDED: dict[str, Callable[[Any], bool]] = {
    "value": lambda value: value is None or is_number(value),
    "metric": lambda value: isinstance(value, str),
    "wall_seconds": lambda value: is_number(value) and value >= 0,
    "config": lambda value: isinstance(value, dict),
}
