"""Files that somebody edited in a sweep's folder: a line that names the file, and no choice by what is no number."""

import errno
import json
import math
import os
from types import SimpleNamespace

import pytest

from capaboost.commands import sweep as command
from capaboost.sweeps.engines.local import LocalEngine
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from capaboost.sweeps.work import exit_code
from capaboost_core import UserError
from tests.sweeps.case import put_result, sweep_file, write_file

LR = {"grid": {"train.lr": [0.01, 0.03]}, "widen": 0}
RESULT = {"value": 90.0, "metric": "accuracy", "wall_seconds": 2.0, "config": {}}
WRONG = {
    "value": ["9", True, [], {}, 10**400],
    "metric": [None, 3, []],
    "wall_seconds": [None, "2", -1.0, True, math.nan],
    "config": [None, [], "x"],
}
EDITED = [json.dumps(RESULT | {name: value}) for name, values in WRONG.items() for value in values]
EDITED += [json.dumps({k: v for k, v in RESULT.items() if k != name}) for name in ("metric", "wall_seconds", "config")]
EDITED += ["", "{", "[]", "null", "3", "[" * 100_000, "\udcff"]
FAILED = ["", "[]", "null", '{"error": "no disk"}', '{"error": 1, "kind": "error", "command": "x"}', "[" * 100_000]


def put(folder, name: str, text: str) -> None:
    (folder / "digits/lora/seed1").mkdir(parents=True)
    (folder / "digits/lora/seed1" / name).write_bytes(text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("text", EDITED, ids=range(len(EDITED)))
def test_an_edited_result_is_one_line(tmp_path, capsys, text):
    file = write_file(tmp_path / "sweep.yaml", methods=["lora"], seeds=[1])
    put(tmp_path / "out", "result.json", text)
    assert command.main([str(file), "--output-dir", str(tmp_path / "out"), "--dry-run", "--speed", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/out/digits/lora/seed1/result.json ")
    assert line.endswith("delete it to run its task again")


@pytest.mark.parametrize("text", FAILED, ids=range(len(FAILED)))
def test_an_edited_failure_is_one_line(tmp_path, text):
    put(tmp_path, "failed.json", text)
    (run,) = plan_of(sweep_file(methods=["lora"], seeds=[1]), SweepFolder(tmp_path)).runs
    with pytest.raises(UserError, match=r"failed\.json .*; delete it to run its task again$"):
        SweepFolder(tmp_path).failure(run)


@pytest.mark.parametrize("worst", ["NaN", "Infinity", "-Infinity", "null"])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_no_number_is_never_best(tmp_path, worst, first):
    folder = SweepFolder(tmp_path)
    rates = ("0.01", "0.03") if first else ("0.03", "0.01")
    put_result(folder, f"digits/lora/tune/lr={rates[0]}/seed1", None)
    path = tmp_path / f"digits/lora/tune/lr={rates[0]}/seed1/result.json"
    path.write_text(path.read_text().replace('"value": null', f'"value": {worst}'))
    put_result(folder, f"digits/lora/tune/lr={rates[1]}/seed1", 3.0)
    (tuned,) = plan_of(sweep_file(methods=["lora"], tune=LR), folder).tuned.values()
    assert tuned.values == {"train.lr": float(rates[1])}
    assert tuned.grid[f"lr={rates[0]}"] is None


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"command": "train-vtab"}'])
def test_a_worker_whose_list_of_runs_is_gone_or_edited_says_so(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    assert exit_code(tmp_path, (1, 1)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_worker_that_cannot_write_says_so_and_the_sweep_ends(tmp_path, monkeypatch, capsys, number):
    folder = SweepFolder(tmp_path)
    folder.write_sweep(sweep_file(methods=["lora"], seeds=[1]))

    def work(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("capaboost.sweeps.work.work", work)
    code = exit_code(tmp_path, (1, 1))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write in {tmp_path}: {os.strerror(number)}; ")
    with pytest.raises(UserError, match="a worker cannot go on, for the reason that it printed above"):
        LocalEngine(1, 1)._note_death(folder, (1, 1), SimpleNamespace(exitcode=code, pid=1))
