"""A command that kills itself: python -m tests.killed CALL COUNT COMMAND...

At its COUNT-th call of os.replace, os.fsync or open (of a partial file), before or after it took effect.
"""

import builtins
import os
import runpy
import signal
import sys


def kill_at(module: object, name: str, count: int, after: bool) -> None:
    whole, calls = getattr(module, name), 0

    def call(*arguments, **options):
        nonlocal calls
        counted = name != "open" or str(arguments[0]).endswith(".partial")
        calls += counted
        if counted and calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*arguments, **options)
        if counted and calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, call)


if __name__ == "__main__":
    place, count, command, *arguments = sys.argv[1:]
    name, _, moment = place.partition("-")
    kill_at(builtins if name == "open" else os, name, int(count), moment == "after")
    sys.argv = [command, *arguments]
    sys.path.insert(0, os.path.dirname(command))
    runpy.run_path(command, run_name="__main__")
