"""A run folder: refused before anything is written, held by one run, left clean."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys

import pytest

from capaboost.training.run_folder import LOCK, check_folder, claim
from capaboost_core import UserError
from tests.commands import ROOT
from tests.core.toy_run import run


def below_a_file(path):
    (path / "file").write_text("")
    return path / "file" / "run"


def a_file(path):
    (path / "file").write_text("")
    return path / "file"


def dangling(path):
    (path / "link").symlink_to(path / "nowhere")
    return path / "link"


def with_part(name, folder=False):
    def make(path):
        part = path / "run" / name
        part.mkdir(parents=True) if folder else (part.parent.mkdir(), part.write_text(""))
        return path / "run"

    return make


def use(folder):
    check_folder(folder, resume=False)
    with claim(folder):
        pass


WRONG = {
    "below a file": (below_a_file, "is no folder"),
    "a file": (a_file, "is no folder"),
    "a dangling link": (dangling, "is a link to nothing"),
    "a name too long": (lambda path: path / ("x" * 300) / "run", "File name too long"),
    "proc": (lambda path: type(path)("/proc/x"), "/proc"),
    "the working folder": (lambda path: type(path)(""), "is the working folder itself"),
    "the root": (lambda path: type(path)("/"), "/ holds your other folders"),
    "the root, written otherwise": (lambda path: type(path)("/usr/../."), "/ holds your other folders"),
    "a folder above the working folder": (lambda path: type(path)(".."), "holds your other folders"),
    "the home": (lambda path: type(path).home(), "holds your other folders"),
    "adapter is a file": (with_part("adapter"), "adapter must be a folder"),
    "tensorboard is a file": (with_part("tensorboard"), "tensorboard must be a folder"),
    "checkpoint.pt is a folder": (with_part("checkpoint.pt", folder=True), "checkpoint.pt must be a file"),
    "result.json is a folder": (with_part("result.json", folder=True), "result.json must be a file"),
}


@pytest.mark.hard_case(31, "messages")
@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_cannot_hold_a_run_is_refused_and_left_as_it_was(case, tmp_path):
    make, message = WRONG[case]
    folder = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as refusal:
        use(folder)
    assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.hard_case("messages")
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="not writable"):
        check_folder(tmp_path / "run", resume=False)


@pytest.mark.hard_case("messages")
def test_a_mounted_read_only_folder_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(UserError, match="Read-only file system; choose another"), claim(tmp_path / "a" / "b"):
        pass


@pytest.mark.hard_case(4)
def test_a_second_run_is_told_who_holds_the_folder(tmp_path):
    folder = tmp_path / "deep" / "run"
    with claim(folder):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on .*; wait until it ends"):
            use(folder)
        assert (folder / LOCK).exists()
    assert not (tmp_path / "deep").exists()


@pytest.mark.hard_case(4)
@pytest.mark.parametrize("change", ["delete", "replace", "link"])
def test_a_lock_file_that_somebody_deletes_frees_nothing(tmp_path, change):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    outside.write_text("mine")
    with claim(folder):
        (folder / LOCK).unlink()
        if change == "replace":
            (folder / LOCK).write_text("process 1 on elsewhere\n")
        if change == "link":
            (folder / LOCK).symlink_to(outside)
        with pytest.raises(UserError, match="is in use by"):
            use_again(folder)
    assert outside.read_text() == "mine"
    assert (folder / LOCK).exists() == (change != "delete")  # another's is left alone


def use_again(folder):
    with claim(folder):
        pass


@pytest.mark.hard_case(4)
def test_a_file_system_that_cannot_lock_folders_has_the_lock_file(tmp_path, monkeypatch):
    lock = fcntl.flock

    def refuse_folders(file, kind):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")  # as NFS
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", refuse_folders)
    with claim(tmp_path / "run"), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        use_again(tmp_path / "run")


@pytest.mark.hard_case(4)
def test_the_lock_of_a_killed_process_blocks_nobody(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from capaboost.training.run_folder import claim\n"
        "with claim(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid}"), claim(tmp_path / "run"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with claim(tmp_path / "run"):
        assert f"process {os.getpid()}" in (tmp_path / "run" / LOCK).read_text()
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.hard_case("messages")
def test_a_disk_without_room_for_two_checkpoints_is_refused_before_training(tmp_path, monkeypatch):
    disk = os.statvfs(tmp_path)
    small = os.statvfs_result((disk.f_bsize, 1024, *disk[2:4], 250, *disk[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    with pytest.raises(UserError, match=r"has 0\.3 MB free, but two checkpoints and the adapter take about 0\.3 MB"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
