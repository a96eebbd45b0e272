"""What somebody deletes or fills while a run lives, and streams that are closed: the run goes on, or says so."""

import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from capaboost.console import Lasting, tell
from capaboost.exit_code import exit_code_of
from tests.core.toy_run import Toy, lines, run, same


def deleting(folder: Path, *names: str) -> type[Toy]:
    """The task, in whose second evaluation these names below the folder go away."""

    class Deleting(Toy):
        def evaluate(self, model):
            found = super().evaluate(model)
            for name in names if self.evaluations == 2 else ():
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return found

    return Deleting


PARTS = [("checkpoint.pt",), ("tensorboard",), ("metrics.jsonl",), ("checkpoint.pt", "tensorboard"), ("",)]


@pytest.mark.parametrize("names", PARTS, ids=str)
def test_a_run_survives_what_is_deleted_in_its_folder(tmp_path, names):
    whole, _ = run(tmp_path / "whole")
    cut, result = run(tmp_path / "cut", task=deleting(tmp_path / "cut", *names))
    assert same(whole, cut)
    assert (tmp_path / "cut" / "checkpoint.pt").is_file()
    assert lines(tmp_path / "cut")[-1]["epoch"] == result.epoch == 4


def test_logs_that_cannot_be_written_are_said_once(tmp_path, monkeypatch, capsys):
    def log(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accelerate.Accelerator.log", log)
    run(tmp_path)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert line.endswith(
        f"cannot write {tmp_path / 'tensorboard'}: No space left on device; metrics.jsonl has all metrics"
    )
    assert len(lines(tmp_path)) == 4


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    def __init__(self):
        super().__init__()
        self.close()


def device_full() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO("/dev/full", "w"), line_buffering=True)


@pytest.mark.parametrize("stream", [Full, Closed, lambda: None, device_full])
def test_a_standard_error_that_is_full_or_closed_ends_no_run(tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    done = []

    def command():
        tell("begun")
        run(tmp_path)  # with its progress bar
        done.append(True)
        raise FileNotFoundError(13, "Permission denied")

    assert exit_code_of(command, "goes on") == 2
    assert done == [True]


def test_without_a_standard_output_a_command_still_works(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert exit_code_of(lambda: sys.stdout.write("text") and None, "goes on") == 0


def test_messages_to_a_closed_stream_leave_no_descriptor_open():
    stream = Lasting(Closed())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        stream.write("lost")
        stream.flush()
    assert len(os.listdir("/proc/self/fd")) == before
