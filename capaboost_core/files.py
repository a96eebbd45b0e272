"""Write files atomically, read regular files of limited size, and lock folders."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, BinaryIO

from capaboost_core.errors import UserError

Write = Callable[[BinaryIO], object]
ADVICE = {
    "read": "choose a path that you may read",
    "write": "choose a folder that you may write to, with enough space",
}
PARTIALS = ".capaboost-*.partial"  # files that are being written, or that a killed process has left
RENAME_TIMEOUT = 60.0  # seconds to wait for another process to rename its files
MAX_TEXT_BYTES = 64 * 2**20  # a thousand times the size of a usual JSON file


def write_atomically(path: Path, write: Write) -> None:
    """Let `write` fill a temporary file in the folder of `path`, sync it, and rename it to `path`.

    The temporary file is new and has a random name, so that neither another writer nor an existing link can replace
    it. A link at `path` itself is replaced, and its target does not change. The new file has the permissions of the
    one that it replaces, else those of the umask.

    Raises:
        UserError: If that fails; the old file is then unchanged, and no temporary file is left.
    """
    write_together({path: write})


def write_together(files: dict[Path, Write]) -> None:
    """Write several files of one folder: all are synced to the disk before the first is renamed.

    They are renamed in the given order, by one process at a time. After a kill between two renames the later files are
    still complete among `partials_in` the folder, until the next writer removes them.

    Raises:
        UserError: If a file cannot be written; the old files are then unchanged, and no temporary file is left.
    """
    folder, renamed = next(iter(files)).parent, False
    partials: dict[Path, Path] = {}
    with explained("write", folder), ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for path, write in files.items():
                check_target(path)
                file, partials[path] = _new_file(folder)
                _keep_mode(file, path)
                _fill(stack.enter_context(file), write)
            with locked(folder, RENAME_TIMEOUT) if len(files) > 1 else nullcontext():
                for path, partial in partials.items():
                    os.replace(partial, path)
                    renamed = True
        except BaseException:
            for partial in () if renamed else partials.values():
                partial.unlink(missing_ok=True)
            raise
        _sync_folder(folder)
        _remove_abandoned(folder)  # last: they may hold the record of weights that a killed process renamed


def partials_in(folder: Path) -> list[Path]:
    """Files that are being written in a folder, or that a killed process has left there."""
    return sorted(folder.glob(PARTIALS))


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file.

    Args:
        path: The file, or a link to one.
        most: The largest allowed size in bytes.

    Raises:
        UserError: If it is no regular file (pipes and devices have no end), or is larger.
        OSError: If the system cannot read it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if max(size, len(data)) > most:
        raise UserError(f"{path} has {size:,} bytes, where {most:,} are the most possible; it is damaged")
    return data


def read_text(path: Path, most: int = MAX_TEXT_BYTES) -> str:
    """`read_bytes`, decoded as UTF-8.

    Raises:
        UnicodeDecodeError: If it is not UTF-8.
    """
    return read_bytes(path, most).decode()


def open_regular(path: Path) -> IO[bytes]:
    """A regular file, or a link to one, open for reading; opening does not block on a pipe without a writer.

    Raises:
        UserError: If it is a pipe, a socket or a device.
        OSError: If the system cannot open it.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is no regular file; put a copy of the file itself there")
    return file


def check_target(path: Path) -> None:
    """Raise an OSError if writing would replace a folder, or a device such as /dev/stdout."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder, without a lock file that could be deleted or left behind.

    The lock ends with the process. On file systems that cannot lock a folder, such as NFS, it has no effect.

    Args:
        folder: An existing folder.
        patience: The number of seconds to wait for another holder.

    Raises:
        BlockingIOError: If another process or thread holds it for longer.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience
    try:
        while not lock_now(descriptor):
            if time.monotonic() >= deadline:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing there; wait until it ends")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def lock_now(file: int) -> bool:
    """Try to lock an open file, until it is closed; false if another process or thread holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no such locks
        return True
    return True


def is_current(file: int, path: Path) -> bool:
    """Whether a path still names an open file."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(file), os.lstat(path))
    return False


@contextmanager
def explained(verb: str, path: Path) -> Iterator[None]:
    """Turn an error of the operating system, such as a full disk or a read-only folder, into a one-line UserError.

    Args:
        verb: `read` or `write`.
        path: The file or folder to name in the message.

    Raises:
        UserError: Instead of the OSError.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides the file's own error
        if not isinstance(cause, OSError):
            raise
        reason = "it is a file or a dangling link" if isinstance(cause, FileExistsError) else cause.strerror or cause
        raise UserError(f"cannot {verb} {path}: {reason}; {ADVICE[verb]}") from error


def _keep_mode(file: BinaryIO, replaced: Path) -> None:
    """Give a new file the permissions of the file that it replaces, if the file system has permissions."""
    with suppress(OSError):  # there is no such file, or vfat and CIFS refuse
        if stat.S_ISREG(mode := os.lstat(replaced).st_mode):
            os.fchmod(file.fileno(), stat.S_IMODE(mode))


def _fill(file: BinaryIO, write: Write) -> None:
    write(file)
    file.flush()
    os.fsync(file.fileno())


def _new_file(folder: Path) -> tuple[BinaryIO, Path]:
    """A new file, locked while it is open, so that others can see that its writer is alive."""
    while True:
        path = folder / PARTIALS.replace("*", secrets.token_hex(8))
        file = open(path, "xb")  # noqa: SIM115 (never follows a link)
        if lock_now(file.fileno()) and is_current(file.fileno(), path):  # else another removed it
            return file, path
        file.close()


def _remove_abandoned(folder: Path) -> None:
    for path in partials_in(folder):
        with suppress(OSError, UserError), open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if its writer is alive
            path.unlink()


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new names survive a power cut
    finally:
        os.close(folder)
