"""Where a run's metrics go beside metrics.jsonl."""

import json
import sqlite3

import pytest

from capaboost.training.run_folder import tracked_by
from capaboost_core import UserError
from capaboost_core.extras import is_installed
from tests.core.toy_run import lines, run


def test_none_leaves_the_metrics_file_alone(tmp_path):
    with tracked_by("none"):
        run(tmp_path, epochs=2)
    assert len(lines(tmp_path)) == 2
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_library_that_is_missing_is_said_before_anything_is_written(tmp_path, name, monkeypatch):
    monkeypatch.setattr("capaboost_core.extras.is_installed", lambda module: False)
    said = f"need {name}, which is not installed; type pip install {name}"
    with pytest.raises(UserError, match=said), tracked_by(name):
        run(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not is_installed("trackio"), reason="trackio is not installed")
def test_trackio_holds_what_the_metrics_file_holds(tmp_path, monkeypatch):
    import trackio.sqlite_storage
    import trackio.utils

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    with tracked_by("trackio"):
        run(tmp_path / "run", epochs=3)
    (database,) = (tmp_path / "trackio").glob("capaboost*.db")
    logged = [
        json.loads(row[0]) for row in sqlite3.connect(database).execute("select metrics from metrics order by id")
    ]
    assert [line["loss"] for line in logged] == [line["loss"] for line in lines(tmp_path / "run")]


@pytest.mark.skipif(not is_installed("wandb"), reason="wandb is not installed")
def test_wandb_writes_into_the_runs_folder_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with tracked_by("wandb"):
        run(tmp_path, epochs=2)
    (written,) = (tmp_path / "wandb").glob("offline-run-*")
    assert written.name.endswith(tuple(path.stem.removeprefix("run-") for path in written.glob("run-*.wandb")))
