"""The one way to write a file and to read one: never through a link, and regular files only."""

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from capaboost_core import UserError
from capaboost_core.files import PARTIALS, locked, partials_in, read_bytes, write_atomically, write_together


def text(content: str):
    return lambda file: file.write(content.encode())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writers_at_the_same_time_leave_one_complete_file(tmp_path):
    path = tmp_path / "file"
    contents = [f"{i}" * 50_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: [write_atomically(path, text(content)) for _ in range(20)], contents))
    assert path.read_text() in contents
    assert names(tmp_path) == ["file"]


def test_pairs_that_are_written_at_the_same_time_are_of_one_writer(tmp_path):
    pair = (tmp_path / "a", tmp_path / "b")

    def write(content):
        for _ in range(30):
            write_together({path: text(content) for path in pair})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "01234567"))
    assert pair[0].read_text() == pair[1].read_text()
    assert names(tmp_path) == ["a", "b"]


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, text("new"))
    assert path.read_text() == "new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    write_atomically(path, text("new"))
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_text() == "new"


def test_a_file_system_without_permissions_takes_a_replacement(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fchmod", refuse)
    write_atomically(tmp_path / "file", text("new"))
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_link_leaves_no_permissions(tmp_path):
    (tmp_path / "private").touch(mode=0o600)
    (tmp_path / "usual").touch()
    (tmp_path / "file").symlink_to("private")
    write_atomically(tmp_path / "file", text("new"))
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def planted(folder, outside, name):
    (folder / name).symlink_to(outside)


@pytest.mark.parametrize("name", ["file", "file.partial", PARTIALS.replace("*", "0" * 16)])
def test_nothing_is_written_through_a_link(tmp_path, name):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    folder.mkdir()
    outside.write_text("mine")
    planted(folder, outside, name)
    write_atomically(folder / "file", text("new"))
    assert outside.read_text() == "mine"
    assert not (folder / "file").is_symlink()
    assert (folder / "file").read_text() == "new"


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_or_a_device_is_not_replaced(tmp_path, linked):
    pipe, target = tmp_path / "pipe", tmp_path / ("link" if linked else "pipe")
    os.mkfifo(pipe)
    if linked:
        target.symlink_to(pipe)
    with pytest.raises(UserError, match="it is no regular file"):
        write_atomically(target, text("new"))
    assert pipe.is_fifo()
    assert target.is_symlink() == linked
    assert not partials_in(tmp_path)


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    (tmp_path / PARTIALS.replace("*", "dead")).write_text("half")
    (tmp_path / "download.partial").write_text("another program's")

    def write(file):
        write_atomically(tmp_path / "other", text("meanwhile"))
        assert len(partials_in(tmp_path)) == 1
        file.write(b"new")

    write_atomically(tmp_path / "file", write)
    assert names(tmp_path) == ["download.partial", "file", "other"]
    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_that_is_deleted_meanwhile_is_one_line(tmp_path):
    folder = tmp_path / "folder"

    def write(file):
        for path in partials_in(folder):
            path.unlink()
        folder.rmdir()
        file.write(b"new")

    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory; choose a folder"):
        write_atomically(folder / "file", write)
    assert not names(tmp_path)


def test_the_lock_of_a_folder_has_one_holder_and_leaves_nothing(tmp_path):
    with locked(tmp_path):
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        assert not names(tmp_path)
        threading.Timer(0.2, (tmp_path / "waited").touch).start()
        with pytest.raises(BlockingIOError), locked(tmp_path, patience=0.5):
            pass
        assert (tmp_path / "waited").exists()
    with locked(tmp_path):
        pass


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize(
    ("make", "message"),
    [(pipe, "no regular file"), (endless, "no regular file"), (sparse, "1,099,511,627,776 bytes, where 1,000 are")],
)
def test_a_file_without_end_is_not_read(tmp_path, make, message):
    make(tmp_path / "file")
    with pytest.raises(UserError, match=message):
        read_bytes(tmp_path / "file", 1000)


def test_a_file_of_the_most_bytes_is_read_also_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 1000) == bytes(1000)
    with pytest.raises(UserError, match="1,000 bytes, where 999 are the most possible"):
        read_bytes(tmp_path / "link", 999)
