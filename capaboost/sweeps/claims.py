"""Who works on a run: a claim is a file that only one process can make, and that expires when nobody renews it."""

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

from capaboost_core.files import explained

RENEW_SECONDS, EXPIRE_SECONDS = 20.0, 120.0
LOCK = ".lock"


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process got the claim; if so it is renewed until the block ends, and then given back.

    A claim is taken over if its process is gone from this host, or if it was not renewed for two minutes by
    another host. Whoever loses a race for it gets False.

    Args:
        path: The claim's file, on a file system that all engines share.
    """
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
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
        if holder(path) == mine:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
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
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def is_held(path: Path) -> bool:
    """Whether a claim is there and holds."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    found = holder(path)
    if found and found.get("host") == socket.gethostname():
        return _is_alive(found.get("pid"))
    return age < EXPIRE_SECONDS


def _take(path: Path, mine: dict[str, Any]) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{mine['id']}")
    own.write_text(json.dumps(mine))
    try:
        with alone(path.parent):  # between moving an expired claim away and making one, nobody else may
            if not _link(own, path):
                if is_held(path) or not _remove_expired(path, mine["id"]):
                    return False
                return _link(own, path)
            return True
    finally:
        own.unlink(missing_ok=True)


def _link(own: Path, path: Path) -> bool:
    """A hard link is made whole or not at all, on NFS too."""
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    return True


def _remove_expired(path: Path, key: str) -> bool:
    """Move an expired claim away; of those that try, one succeeds. A fresh one that got there first is put back."""
    aside = path.with_name(f"{path.name}.{key}.expired")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    expired = not is_held(aside)
    if not expired:
        _link(aside, path)
    aside.unlink()
    return expired


def _renew(path: Path, mine: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(OSError):
            if holder(path) == mine:
                os.utime(path)


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True
