"""A sweep on a disk that is really full: a line for each run, nothing half written, and it goes on after."""

import re
import subprocess

import pytest

from tests import commands
from tests.sweeps.case import FAST, start, write_file

INODES = 28  # of a run and a half


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size=64m,nr_inodes={INODES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.long
def test_a_sweep_on_a_disk_that_fills_goes_on_when_there_is_room(tmp_path, small_disk):
    file = write_file(tmp_path / "sweep.yaml", methods=["lora"], seeds=[1, 2], set=dict(FAST))
    sweep = start(file, small_disk / "out", "--workers", "1")
    (line,) = sweep.communicate(timeout=commands.TIMEOUT)[1].splitlines()
    assert sweep.returncode == 2
    assert re.match(r"error: [12] of 2 runs failed, first \S+: cannot write .*: No space left on device; ", line)
    assert not list(small_disk.rglob("*.partial"))
    subprocess.run(["mount", "-o", "remount,nr_inodes=1000", small_disk], check=True)
    commands.finish(start(file, small_disk / "out", "--workers", "1", "--retry"))
    assert len(list(small_disk.rglob("result.json"))) == 2
