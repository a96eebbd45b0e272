"""From an error to one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from capaboost.console import lasting_streams, tell
from capaboost.training.processes import another_printed_error, prints_error
from capaboost_core.errors import Stopped, UserError, is_no_memory, no_memory_line

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
DISK |= {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}


def exit_code_of(command: Callable[[], None], stopped: str) -> int:
    """Run a command; of the processes that fail, one prints one line.

    Args:
        command: The command.
        stopped: What to print after an interruption.

    Returns:
        0, 2 after a mistake, or 128 + the number of the signal that stopped it.
    """
    with lasting_streams():
        return _exit_code_of(command, stopped)


def _exit_code_of(command: Callable[[], None], stopped: str) -> int:
    try:
        with _sigterm_stops():
            command()
    except Stopped as stop:
        return _end(str(stop) or f"stopped; {stopped}", 128 + stop.number)
    except KeyboardInterrupt:
        return _end(f"stopped; {stopped}", 128 + signal.SIGINT)
    except UserError as error:
        return _end(f"error: {error}", 2)
    except BrokenPipeError:  # nobody reads on, as in `capaboost flops ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at exit must go somewhere
        return 128 + signal.SIGPIPE
    except (MemoryError, RuntimeError, OSError) as error:
        if is_no_memory(error):
            return _end(f"error: {no_memory_line(error)}", 2)
        if isinstance(error, RuntimeError) and another_printed_error():
            return 2  # what failed here is the connection to the process that printed its error and ended
        if not isinstance(error, OSError) or error.errno not in DISK:
            raise
        place = f" ({error.filename})" if error.filename else ""
        return _end(f"error: {error.strerror}{place}; free some space, or choose another folder", 2)
    return 0


def _end(message: str, code: int) -> int:
    if prints_error():
        tell(message)
    return code


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
