"""Who works on a run: a claim is a file that only one process can make, and that ends with its process.

A process is known by its number and the moment that it started, on a machine that is known by its boot and the space
of its numbers: a restarted container, or another machine of the same name, has equal numbers for other processes.
Where the system does not say that, and between machines, a claim expires when nobody renews it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capaboost_core.files import explained, read_text

RENEW_SECONDS, EXPIRE_SECONDS = 20.0, 120.0
LOCK = ".lock"
STARTED = 19  # of the fields after the name in /proc/PID/stat: clock ticks from the boot to the start


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process got the claim; if so it is renewed until the block ends, and then given back.

    A claim is taken over if its process is gone from this machine, or if it was not renewed for two minutes by
    another one. Whoever loses a race for it gets False.

    Args:
        path: The claim's file, on a file system that all engines share.

    Raises:
        UserError: If the folder cannot be written to.
    """
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex} | (_process(os.getpid()) or {})
    if not _take(path, mine):
        yield False
        return
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, mine, ended), daemon=True)
    renewing.start()
    try:
        yield True
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(OSError):  # of a folder that was deleted meanwhile, nothing is left to give back
            if holder(path) == mine:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_mutex(folder: Path) -> Iterator[None]:
    """One process at a time, of all that share the folder. The lock's file is open for writing, as NFS wants it.

    Raises:
        UserError: If the folder cannot be written to.
    """
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def holder(path: Path) -> dict[str, Any] | None:
    """What the claim says of its process; None if there is no claim, or one that is being written."""
    try:
        found = json.loads(read_text(path, 10_000))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_held(path: Path) -> bool:
    """Whether a claim is there and holds."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    found, here = holder(path), _process(os.getpid())
    if found and here and found.get("machine") == here["machine"]:
        return _process(found.get("pid")) == {"machine": found["machine"], "started": found.get("started")}
    if found and not found.get("machine") and found.get("host") == socket.gethostname():  # of an earlier version
        return _exists(found.get("pid")) and age < EXPIRE_SECONDS
    return age < EXPIRE_SECONDS


def _take(path: Path, mine: dict[str, Any]) -> bool:
    with folder_mutex(path.parent), explained("write", path):  # between removing an expired claim and making one
        if is_held(path):
            return False
        path.unlink(missing_ok=True)
        try:
            with open(path, "x") as file:  # on a file system whose locks are of one machine, this decides
                json.dump(mine, file)
        except FileExistsError:
            return False
    return holder(path) == mine


def _renew(path: Path, mine: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(OSError):
            if holder(path) == mine:
                os.utime(path)


def _process(pid: Any) -> dict[str, str] | None:
    """What identifies a process of this machine, across restarts too; None if it has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, TypeError, ValueError):
        return None
    return {"machine": f"{boot} {space}", "started": fields[STARTED]} if fields[0] not in "ZX" else None


def _exists(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
