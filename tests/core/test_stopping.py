"""Signals: a run finishes its step, saves, says so; resuming within an epoch is bit-identical."""

import signal

import pytest
import torch

from capaboost.exit_code import exit_code_of
from capaboost.training import loop as stopping
from capaboost.training.loop import SignalGuard, Stopped
from tests.commands import finish, ranks
from tests.core.toy_run import lines, model, run, same, signalled

STEPS = 5  # of an epoch of the toy run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, STEPS, STEPS + 3, 4 * STEPS])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_bit_for_bit(tmp_path, step, number):
    whole, result = run(tmp_path / "whole", network=model(dropout=0.5))
    handler = signal.getsignal(number)
    with pytest.raises(Stopped) as stop:
        run(tmp_path / "cut", task=signalled(step, number), network=model(dropout=0.5))
    assert stop.value.number == number
    epoch, within = divmod(step - 1, STEPS)
    place = f"stopped by {number.name} in epoch {epoch + 1}, after step {within + 1} of {STEPS}; "
    assert str(stop.value) == f"{place}the same command with --resume goes on from {tmp_path / 'cut'}"
    assert signal.getsignal(number) is handler
    resumed, again = run(tmp_path / "cut", network=model(dropout=0.5), resume=True)
    assert same(whole, resumed)
    assert again.metrics == result.metrics
    told = [[line["loss"] for line in lines(tmp_path / name)] for name in ("whole", "cut")]
    assert told[0] == told[1]


def test_a_run_can_be_stopped_at_every_step(tmp_path):
    whole, _ = run(tmp_path / "whole", network=model(dropout=0.5))
    for step in range(4 * STEPS):
        with pytest.raises(Stopped):
            run(tmp_path / "cut", task=signalled(1), network=model(dropout=0.5), resume=step > 0)
    resumed, _ = run(tmp_path / "cut", network=model(dropout=0.5), resume=True)
    assert same(whole, resumed)


def test_long_epochs_are_saved_within(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "SAVE_SECONDS", -1.0)
    saved = []
    monkeypatch.setattr(
        "capaboost.training.result.Record.save",
        lambda self, state: saved.append((state.epoch, state.position and state.position["step"])),
    )
    run(tmp_path, epochs=2)
    within = [[(epoch, step) for step in range(1, STEPS + 1)] + [(epoch + 1, None)] for epoch in range(2)]
    assert saved == within[0] + within[1]


def test_a_second_signal_stops_at_once(monkeypatch):
    with SignalGuard(1) as watch:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # passed on by a launcher
        assert watch.poll() == signal.SIGTERM
        monkeypatch.setattr(stopping, "BURST_SECONDS", -1.0)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_anywhere_is_one_line_and_an_exit_code(number, code, capsys):
    assert exit_code_of(lambda: signal.raise_signal(number), "goes on") == code
    assert capsys.readouterr().err == "stopped; goes on\n"


@pytest.mark.parametrize(("step", "rank"), [(2, 1), (STEPS + 5, 0)])
def test_two_processes_stop_at_the_same_step(tmp_path, step, rank):
    def start(folder, *more):
        return ranks(2, "-m", "tests.core.toy_run", str(tmp_path / folder), "--dropout", *more)

    finish(start("whole"))
    process = start("cut", str(step), str(rank))
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count("stopped by SIGTERM in epoch") == 1
    states = {}
    finish(start("cut", "--resume"))
    for folder in ("whole", "cut"):
        states[folder] = torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True)["parameters"]
    assert all(torch.equal(value, states["cut"][name]) for name, value in states["whole"].items())
