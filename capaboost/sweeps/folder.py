"""A sweep's folder: its list of runs, and how far each is."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from capaboost.sweeps.claims import folder_mutex, is_held
from capaboost.sweeps.runs import Run
from capaboost.sweeps.sweep_file import SweepFile
from capaboost.training.result import read_result
from capaboost.training.run_folder import METRICS, RESULT, to_json
from capaboost_core.errors import UserError
from capaboost_core.files import read_text, write_atomically

SWEEP, CLAIMS, FAILED, LOG = "sweep.json", "claims", "failed.json", "log.txt"
RECORDED = ("error", "kind", "command")  # of a failure
LONGEST = 255  # bytes of a file's name
DONE, FAILURE, RUNNING, WAITING = "done", "failed", "running", "waiting"


@dataclass(frozen=True)
class SweepFolder:
    """The folder, absolute, since workers may stand elsewhere."""

    path: Path

    def place(self, run: Run) -> Path:
        return self.path / run.name

    def claim(self, run: Run) -> Path:
        name = run.name.replace("/", "--")
        short = len(os.fsencode(name)) <= LONGEST
        return self.path / CLAIMS / (name if short else hashlib.sha256(name.encode()).hexdigest())

    def write_sweep(self, sweep: SweepFile) -> None:
        """What the workers are to do. Another sweep may be starting in the same folder."""
        with folder_mutex(self.path / CLAIMS):
            _write(self.path / SWEEP, sweep.to_dict())

    def sweep(self) -> SweepFile:
        """What `write_sweep` wrote.

        Raises:
            UserError: If it cannot be read, as when somebody deleted it.
        """
        try:
            values = json.loads(read_text(self.path / SWEEP))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.path / SWEEP} cannot be read; type the command of the sweep again") from error
        return SweepFile.from_dict(values)

    def is_done(self, run: Run) -> bool:
        return (self.place(run) / RESULT).is_file()

    def is_failed(self, run: Run) -> bool:
        return (self.place(run) / FAILED).is_file()

    def is_open(self, run: Run) -> bool:
        """Whether it is still to be run."""
        return not (self.is_done(run) or self.is_failed(run))

    def state(self, run: Run) -> str:
        if self.is_done(run):
            return DONE
        if self.is_failed(run):
            return FAILURE
        return RUNNING if is_held(self.claim(run)) else WAITING

    def result(self, run: Run) -> dict[str, Any]:
        path = self.place(run) / RESULT
        return _result(path, path.stat().st_mtime_ns)

    def fail(self, run: Run, error: str, kind: str, command: str) -> None:
        """Record that a run cannot be done."""
        _write(self.place(run) / FAILED, dict(zip(RECORDED, (error, kind, command), strict=True)))

    def failure(self, run: Run) -> dict[str, Any]:
        """What `fail` recorded.

        Raises:
            UserError: If it cannot be read, or is no such record.
        """
        path = self.place(run) / FAILED
        try:
            record = json.loads(read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read; delete it to run its task again") from error
        if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in RECORDED):
            raise UserError(f"{path} lacks a usable {', '.join(RECORDED)}; delete it to run its task again")
        return record

    def forget_failures(self, runs: list[Run]) -> None:
        for run in runs:
            (self.place(run) / FAILED).unlink(missing_ok=True)

    def epochs_done(self, run: Run) -> int:
        """Finished epochs of a run in progress."""
        try:
            return (self.place(run) / METRICS).read_bytes().count(b"\n")
        except OSError:
            return 0


@lru_cache(maxsize=10_000)
def _result(path: Path, changed: int) -> dict[str, Any]:
    return read_result(path)


def _write(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, lambda file: file.write((to_json(values, indent=2) + "\n").encode()))
