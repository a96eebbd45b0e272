"""The command that a result file of a sweep names."""

from pathlib import Path

import pytest

from capaboost.sweeps.runs import Run
from capaboost.sweeps.work import command_line


@pytest.mark.parametrize(("place", "shown"), [("out/run", "out/run"), ("/elsewhere/run", "/elsewhere/run")])
def test_a_folder_below_the_working_one_is_named_as_from_there(place, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("digits/lora/seed42", ("digits", "lora"), "train-vtab", "digits", "lora", 42, {})
    assert f"--output-dir {shown} --resume" in command_line(run, Path.cwd() / place)
