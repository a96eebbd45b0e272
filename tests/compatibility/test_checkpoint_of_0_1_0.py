"""A checkpoint that version 0.1.0 wrote is refused in one line, and stays."""

import shutil
from pathlib import Path

import pytest

from capaboost_core import UserError
from tests.core.toy_run import run

CHECKPOINT = Path(__file__).parent / "0.1.0" / "checkpoint.pt"


def test_it_is_refused_and_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(CHECKPOINT, folder)
    with pytest.raises(UserError, match=r"checkpoint\.pt.*version") as caught:
        run(folder, resume=True)
    assert "\n" not in str(caught.value)
    assert (folder / "checkpoint.pt").read_bytes() == CHECKPOINT.read_bytes()
