"""Claims: one process holds one, whoever else tries; what is left by a dead one is taken over."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from capaboost.sweeps import claims
from capaboost.sweeps.claims import claimed, holder, is_held
from capaboost_core import UserError
from tests.commands import ROOT

OLD = claims.EXPIRE_SECONDS + 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "claims" / "run"


def leave(path, age: float = 0.0, **changes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "id": "x"} | claims._process(os.getpid())
    path.write_text(json.dumps(mine | changes))
    os.utime(path, (time.time() - age,) * 2)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_claim_is_held_until_its_block_ends_and_leaves_nothing(path):
    with claimed(path) as mine:
        assert mine
        assert is_held(path)
        with claimed(path) as other:
            assert not other
        assert holder(path)["pid"] == os.getpid()
    assert [left.name for left in path.parent.iterdir()] == [claims.LOCK]


@pytest.mark.parametrize(
    ("age", "changes", "taken"),
    [
        (0.0, {}, False),
        (1e4, {}, False),  # its process lives on this machine, and may only be slow
        (0.0, {"pid": None}, True),
        (0.0, {"pid": 10**30}, True),
        (0.0, {"started": "1"}, True),  # another process has its number now, as in a restarted container
        (0.0, {"pid": 1}, True),  # also one that lives, but started at another time
        (0.0, {"machine": "elsewhere"}, False),
        (OLD, {"machine": "elsewhere"}, True),  # as after a reboot, or of a machine with this one's name
        (0.0, {"machine": "elsewhere", "host": "elsewhere"}, False),
        (OLD, {"machine": "elsewhere", "host": "elsewhere"}, True),
        (0.0, {"machine": None}, False),  # version 0.1.0 told the host and the number alone
        (OLD, {"machine": None}, True),
        (0.0, {"machine": None, "pid": 10**30}, True),
        (0.0, {"machine": None, "host": "elsewhere"}, False),
    ],
)
def test_what_expired_is_taken_over(path, age, changes, taken):
    leave(path, age, **changes)
    with claimed(path) as mine:
        assert mine == taken
    assert path.exists() != taken


@pytest.mark.parametrize("content", ["", "[]", "{", '"text"'])
def test_a_claim_that_a_killed_process_was_writing_expires(path, content):
    leave(path)
    path.write_text(content)
    with claimed(path) as mine:
        assert not mine
    os.utime(path, (time.time() - OLD,) * 2)
    with claimed(path) as mine:
        assert mine


def test_a_zombie_holds_nothing(path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    leave(path, pid=process.pid)
    assert not is_held(path)
    process.wait()


def test_a_claim_needs_no_hard_link(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with claimed(path) as mine, claimed(path) as other:
        assert (mine, other) == (True, False)
    assert [left.name for left in path.parent.iterdir()] == [claims.LOCK]


def test_a_folder_deleted_while_a_claim_is_held_is_no_error(path):
    with claimed(path) as mine:
        assert mine
        shutil.rmtree(path.parent)


def test_a_claim_in_a_folder_that_cannot_be_written_is_one_line(path):
    path.parent.parent.joinpath("claims").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*claims"), claimed(path):
        pass


def test_a_dead_process_of_this_host_holds_nothing(path):
    leave(path, pid=dead_pid())
    assert not is_held(path)
    with claimed(path) as mine:
        assert mine


def test_it_is_renewed_while_it_is_held(path, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.01)
    with claimed(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 60


def test_of_many_that_race_for_an_expired_claim_one_has_it_at_a_time(path):
    """Threads of one process race as processes do: the claim's file is all that they share."""
    leave(path, pid=dead_pid())
    inside, most, wins, lock = 0, 0, 0, threading.Lock()

    def race() -> None:
        nonlocal inside, most, wins
        for _ in range(20):
            with claimed(path) as mine:
                if mine:
                    with lock:
                        inside, wins = inside + 1, wins + 1
                        most = max(most, inside)
                    time.sleep(0.001)
                    with lock:
                        inside -= 1

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)
    assert wins > 1
    assert [left.name for left in path.parent.iterdir()] == [claims.LOCK]


def test_a_killed_holder_is_followed_by_another(path):
    code = f"import time\nfrom pathlib import Path\nfrom capaboost.sweeps.claims import claimed\n" \
           f"with claimed(Path({str(path)!r})) as mine:\n  print(mine, flush=True)\n  time.sleep(60)"  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "True\n"
    with claimed(path) as mine:
        assert not mine
    process.kill()
    process.wait()
    with claimed(path) as mine:
        assert mine
