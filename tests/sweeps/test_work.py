"""The command that a result file of a sweep names."""

from pathlib import Path

import pytest

from capaboost.sweeps.runs import Run
from capaboost.sweeps.work import command_line
from capaboost.training.settings import parse_assignments


@pytest.mark.parametrize(("place", "shown"), [("out/run", "out/run"), ("/elsewhere/run", "/elsewhere/run")])
def test_a_folder_below_the_working_one_is_named_as_from_there(place, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("digits/lora/seed42", ("digits", "lora"), "train-vtab", "digits", "lora", 42, {})
    assert f"--output-dir {shown} --resume" in command_line(run, Path.cwd() / place)


TEXTS = ("012", "08", "1:30", "0x1f", "1e-3", "no", "null", "", "a: b")


@pytest.mark.parametrize("value", [*TEXTS, 12, 1e-3, 1e-05, True, None, ["08", 8], ("a", "1_0"), {"a": "010"}])
def test_a_value_reaches_the_command_as_it_stands_in_the_sweep(value):
    run = Run("a/b/seed1", ("a", "b"), "train-vtab", "a", "b", 1, {"model.kwargs": value})
    (assignment,) = (text for text in run.arguments if text.startswith("model.kwargs="))
    plain = list(value) if isinstance(value, tuple) else value
    assert parse_assignments([assignment]) == {"model": {"kwargs": plain}}
