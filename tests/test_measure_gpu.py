"""The stages of a GPU's day: what is done is not run again, what the limit stops goes on, and every command exists."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

from tests.commands import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import measure_gpu
from measure_gpu import Stage, run_stages, stages


def stage(name: str, code: str, minutes: float = 1) -> Stage:
    return Stage(name, ("-c", code), minutes)


def states(attempts: list[dict]) -> dict[str, str]:
    return {line["name"]: line["state"] for line in attempts}


def test_a_failure_is_told_and_run_again_and_what_is_done_is_not(tmp_path):
    flag = tmp_path / "flag"
    fails = stage("fails", f"import sys, pathlib; print('told'); sys.exit(not pathlib.Path({str(flag)!r}).exists())")
    found = [stage("works", "pass"), fails]
    assert states(run_stages(found, tmp_path, 60, "cpu")) == {"works": "done", "fails": "failed"}
    assert (tmp_path / "logs" / "fails.log").read_text() == "told\n"
    flag.touch()
    assert states(run_stages(found, tmp_path, 60, "cpu")) == {"fails": "done"}
    assert run_stages(found, tmp_path, 60, "cpu") == []
    lines = [json.loads(line) for line in (tmp_path / "stages.jsonl").read_text().splitlines()]
    assert states(lines) == {"works": "done", "fails": "done"}


def test_at_its_limit_a_stage_may_save_and_goes_on_the_next_time(tmp_path):
    saved = tmp_path / "saved"
    code = f"""
import pathlib, signal, sys, time
saved = pathlib.Path({str(saved)!r})
def save(*_):
    saved.write_text("half")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
if not saved.exists():
    time.sleep(60)
"""
    found = [stage("long", code, minutes=2 / 60), stage("next", "pass")]
    assert states(run_stages(found, tmp_path, 60, "cpu")) == {"long": "stopped", "next": "done"}
    assert saved.read_text() == "half"
    assert states(run_stages(found, tmp_path, 60, "cpu")) == {"long": "done"}


def test_when_the_time_is_over_nothing_more_begins(tmp_path):
    found = [stage("long", "import time; time.sleep(60)"), stage("next", "pass")]
    began = time.monotonic()
    assert states(run_stages(found, tmp_path, 1, "cpu")) == {"long": "stopped"}
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_stage_has_a_name_and_a_command_that_exists(device, tmp_path):
    options = measure_gpu.parse_arguments(["--device", device, "--data-dir", str(tmp_path)])
    found = stages(options)
    assert len({each.name for each in found}) == len({each.command for each in found}) == len(found)
    for each in found:
        first, second = each.command[:2]
        assert importlib.util.find_spec(second) if first == "-m" else (ROOT / first).is_file(), each.name


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--time", "25"], "is no time"), (["--time", "0m"], "is no time"), (["--device", "tpu"], "invalid choice")],
)
def test_a_wrong_flag_is_told(flags, message, capsys):
    with pytest.raises(SystemExit):
        measure_gpu.main(flags)
    assert message in capsys.readouterr().err


def test_missing_data_is_one_line(tmp_path: Path, capsys):
    out = tmp_path / "out"
    flags = ["--device", "cpu", "--data-dir", str(tmp_path), "--output-dir", str(out)]
    assert measure_gpu.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no train-*.parquet" in line
    assert not out.exists()
