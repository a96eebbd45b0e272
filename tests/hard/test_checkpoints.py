"""From a damaged run folder a run goes on to the same bits, or is refused in one line with the folder as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given
from hypothesis import strategies as st

from capaboost_core.files import PARTIALS
from tests.core.toy_run import model, run, same, stopping_at
from tests.hard.oracle import attempt, refused, scratch, slow
from tests.hard.values import damaged

CHECKPOINT, PREVIOUS, METRICS = "checkpoint.pt", "checkpoint.previous.pt", "metrics.jsonl"
EPOCHS, STOP = 3, 3  # the run stops in the evaluation of this epoch


class Stopped:
    """The weights of a run that went through, and the folder of one that did not."""

    def __init__(self, folder: Path):
        self.folder = folder / "cut"
        self.whole, _ = train(folder / "whole")
        self.lines = lines(folder / "whole")
        with pytest.raises(InterruptedError):
            train(self.folder, task=stopping_at(STOP))
        self.checkpoint = (self.folder / CHECKPOINT).read_bytes()
        self.metrics = (self.folder / METRICS).read_bytes()

    def __repr__(self) -> str:
        return "stopped"


def train(folder: Path, **more):
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
    return run(folder, network=model(dropout=0.5), epochs=EPOCHS, **more)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield Stopped(tmp_path_factory.mktemp("runs"))


def lines(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without times."""
    told = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in told]


def goes_on(stopped: Stopped, files: dict[str, bytes | None]):
    """Resume with other contents of files (None: without it); what goes on has to end in the same bits."""
    with scratch() as folder:
        place = shutil.copytree(stopped.folder, folder / "run")
        for name, content in files.items():
            (place / name).unlink(missing_ok=True)
            if content is not None:
                (place / name).write_bytes(content)
        got = attempt(lambda: train(place, resume=True), place)
        if not refused(got):
            assert not list(place.rglob(PARTIALS))
            return got[0], lines(place)
        return None


@slow
@given(data=st.data(), previous=st.sampled_from(["kept", "kept", "lost", "damaged"]))
def test_damaged_checkpoints(stopped, data, previous):
    files = {CHECKPOINT: data.draw(damaged(stopped.checkpoint))}
    if previous == "lost":
        files[PREVIOUS] = None
    elif previous == "damaged":
        files[PREVIOUS] = data.draw(damaged(stopped.checkpoint))
    ended = goes_on(stopped, files)
    assert (ended is not None) == (previous == "kept" or files[CHECKPOINT] == stopped.checkpoint)
    if ended:
        assert same(stopped.whole, ended[0])
        assert ended[1] == stopped.lines


@slow
@given(data=st.data())
def test_damaged_metrics(stopped, data):
    spoilt = data.draw(st.one_of(damaged(stopped.metrics), st.binary(max_size=40), st.none()))
    network, told = goes_on(stopped, {METRICS: spoilt})
    assert same(stopped.whole, network)
    assert told[-1] == stopped.lines[-1]
    epochs = [line["epoch"] for line in told]
    assert epochs == sorted(set(epochs))


@slow
@given(data=st.data())
def test_other_things_in_the_folder(stopped, data):
    names = st.sampled_from([CHECKPOINT, PREVIOUS, METRICS, "result.json", PARTIALS.replace("*", "killed")])
    files = data.draw(st.dictionaries(names, st.none() | st.binary(max_size=20), min_size=1, max_size=3))
    ended = goes_on(stopped, files)
    if ended:
        assert same(stopped.whole, ended[0])
