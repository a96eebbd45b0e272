"""Commands as processes of their own, forked from one that has imported the libraries already.

A fork is a real process: it has a number, takes signals and limits, and ends with its own exit code. Where the start
of a fresh interpreter is what is tested, as of a launcher or a package, tests start one themselves or by `torchrun`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT = 900.0  # seconds: only what hangs takes so long, on a busy machine too
FORKS = multiprocessing.get_context("forkserver")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


class Command:
    """A command, to be used as a `subprocess.Popen` whose output is read when it has ended."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str]):
        start_server()
        self.printed = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        names, limit = [file.name for file in self.printed], resource.getrlimit(resource.RLIMIT_FSIZE)
        self.process = FORKS.Process(target=_become, args=(command, environment, names, limit))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float = TIMEOUT) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.process.exitcode

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (file.read() for file in self.printed)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Ranks:
    """Several commands that share a run, as a launcher starts them: if one fails, the others are stopped."""

    def __init__(self, commands: list[Command]):
        self.commands = commands
        self.returncode: int | None = None

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        deadline = time.monotonic() + timeout
        while None in (codes := [command.poll() for command in self.commands]) and not any(codes):
            assert time.monotonic() < deadline, "the processes do not end"
            time.sleep(0.02)
        for command in self.commands:
            command.send_signal(signal.SIGTERM)
        told = [command.communicate(timeout) for command in self.commands]
        self.returncode = next((code for code in codes if code), 0)
        return "".join(out for out, _ in told), "".join(err for _, err in told)


def start(*command: str) -> Command:
    """The tool and its flags, or -m and a module, or -c and code, on one thread of the CPU."""
    return Command(command, os.environ | ONE_THREAD)


def ranks(count: int, *command: str, **more: str) -> Ranks:
    """The command in processes that know of each other, with further environment variables."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
    environment = os.environ | ONE_THREAD | shared | more
    return Ranks([Command(command, environment | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(count)])


def torchrun(*command: str, **environment: str | None) -> subprocess.Popen:
    """The command under torchrun in two fresh processes; an environment variable that is None is left out."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", _port()]
    here = {name: value for name, value in (os.environ | ONE_THREAD | environment).items() if value is not None}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, *command], cwd=ROOT, env=here, **pipes)


def start_server() -> None:
    """The process that commands are forked from; the first command does it."""
    FORKS.set_forkserver_preload(["tests.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def finish(process: Command | Ranks | subprocess.Popen, timeout: float = TIMEOUT) -> str:
    """What it printed, once it has ended without a fault."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out


def _port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _become(command: tuple[str, ...], environment: dict[str, str], printed: list[str], limit: tuple[int, int]) -> None:
    """In the fork: run the command as Python would have."""
    for number, name in enumerate(printed, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    importlib.import_module("tests.preloaded")  # it is there, unless a sweep in a test's own process came first
    # What the command itself starts by a fork server is forked from the same one, as multiprocessing says it is.
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None
    first, *rest = command
    sys.argv = [*(rest if first == "-m" else command)]
    sys.path[0:0] = [str(ROOT)]
    if first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(str(ROOT / first), run_name="__main__")
