"""Adapter files on the disk: equal, with the usual modes, whole after kills and full disks; errors are one line."""

import builtins
import json
import os
import resource
import shutil
import signal
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from capaboost_core import Plan, Target, UserError, inject, load_adapter, load_peft, save_adapter, save_peft
from capaboost_core.adapter_files import load as loading
from capaboost_core.adapter_files.beside import FOLDER
from capaboost_core.files import PARTIALS, write_atomically
from capaboost_core.methods import Method
from tests.core.adapter_case import CONFIG, WEIGHTS, contents, edit_record, saved
from tests.core.toy_model import PLAN, Net, X, adapted, config_of, fresh_base, randomise


@pytest.mark.hard_case(33)
def test_equal_adapters_are_equal_files(tmp_path):
    model = saved(tmp_path / "0")
    for i in range(1, 9):
        save_adapter(model, tmp_path / str(i))
    load_adapter(other := fresh_base(), tmp_path / "0")
    save_adapter(other, tmp_path / "loaded")
    assert all(contents(folder) == contents(tmp_path / "0") for folder in tmp_path.iterdir())


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_modes_that_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        saved(tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}


@contextmanager
def nobody():
    """As a user who is not root: root may do anything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared():
    """A folder that other users can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_that_may_not_be_read_is_said_to_be_so(shared, name):
    saved(shared / "adapter")
    (shared / "adapter").chmod(0o755)
    (shared / "adapter" / name).chmod(0)
    with nobody(), pytest.raises(UserError, match=f"cannot read .*{name}: Permission denied"):
        load_adapter(fresh_base(), shared / "adapter")


def below_a_file(folder):
    (folder / "file").touch()
    return folder / "file" / "adapter"


def a_file(folder):
    (folder / "file").touch()
    return folder / "file"


def dangling_link(folder):
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def record_a_folder(folder):
    (folder / "adapter" / CONFIG).mkdir(parents=True)
    return folder / "adapter"


FOLDERS = {
    "below a file": (below_a_file, "Not a directory"),
    "a file": (a_file, "it is a file or a dangling link"),
    "a dangling link": (dangling_link, "it is a file or a dangling link"),
    "a long name": (lambda folder: folder / ("n" * 300), "File name too long"),
    "below /proc": (lambda folder: Path("/proc/x/adapter"), "No such file"),
    "a folder for a file": (record_a_folder, "Is a directory|is a folder"),
}


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_cannot_be_written_are_one_line(tmp_path, case):
    make, hint = FOLDERS[case]
    folder = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=hint) as caught:
        save_adapter(adapted(), folder)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError):
        load_adapter(fresh_base(), folder)


@pytest.mark.hard_case("messages")
def test_a_read_only_folder_is_one_line(shared):
    saved(shared)
    before = contents(shared)
    with nobody():
        with pytest.raises(UserError, match=r"cannot write .*: Permission denied"):
            save_adapter(adapted(), shared)
        with pytest.raises(UserError, match=r"cannot write .*: Permission denied"):
            save_adapter(adapted(), shared / "new")
    assert contents(shared) == before


@contextmanager
def little_space():
    """Files may not grow beyond 1,000 bytes, as on a full disk; the test's own log may be such a file."""
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write(bytes(10_000))])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    with little_space(), pytest.raises(UserError, match=r"cannot write .*: File too large"):
        write_atomically(path, lambda file: write(torch.zeros(10_000), file))
    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.hard_case("messages")
def test_a_full_disk_keeps_the_old_adapter(tmp_path):
    model = saved(tmp_path)
    before = contents(tmp_path)
    randomise(model)
    with little_space(), pytest.raises(UserError, match="File too large"):
        save_adapter(model, tmp_path)
    assert contents(tmp_path) == before


def save_and_die(model, folder, steps):
    """Save in a process that is killed in place of the step after `steps`; whether it was."""
    if not (child := os.fork()):
        done = []

        def counted(call):
            def step(*args, **options):
                done.append(call)
                if len(done) > steps:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return step

        builtins.open, os.fsync, os.replace = map(counted, (builtins.open, os.fsync, os.replace))
        save_adapter(model, folder)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def another():
    """A model with the same masks, other weights and another scale."""
    return randomise(randomise(adapted(alpha=3)))


def outputs(folder):
    try:
        return load_adapter(fresh_base(), folder)(X).tolist()
    except UserError:
        return None


def test_after_a_kill_at_any_step_the_old_or_the_new_adapter_loads(tmp_path):
    old = saved(tmp_path / "old")(X).tolist()
    model = saved(tmp_path / "new", another())
    new, found = model(X).tolist(), []
    for step in range(20):
        shutil.copytree(tmp_path / "old", tmp_path / "over")
        killed = [save_and_die(model, folder, step) for folder in (tmp_path / "over", tmp_path / "first")]
        found.append((outputs(tmp_path / "over"), outputs(tmp_path / "first")))
        if not any(killed):
            break
        saved(tmp_path / "over")  # and the next save leaves nothing behind
        assert sorted(contents(tmp_path / "over")) == [WEIGHTS, CONFIG]
        shutil.rmtree(tmp_path / "over")
        shutil.rmtree(tmp_path / "first", ignore_errors=True)
    over, first = zip(*found, strict=True)
    turn = over.index(new)
    assert 0 < turn < len(over) - 1
    assert list(over) == [old] * turn + [new] * (len(over) - turn)
    assert list(first) == [None] * turn + [new] * (len(over) - turn)


OLD, NEW = "adapter_config.json.partial", PARTIALS.replace("*", "0" * 16)  # names of version 0.1.0 and of now


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_stale_partial_record_is_not_taken(tmp_path, name):
    model = saved(tmp_path)
    (tmp_path / name).write_text('{"format": "capab')
    assert outputs(tmp_path) == model(X).tolist()
    saved(tmp_path / "other", another())
    shutil.copy(tmp_path / "other" / CONFIG, tmp_path / name)
    assert outputs(tmp_path) == model(X).tolist()


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_planted_record_does_not_overrule_the_one_that_is_seen(tmp_path, name):
    model = saved(tmp_path)
    record = json.loads((tmp_path / CONFIG).read_text())
    planted = record | {"config": record["config"] | {"alpha": 77.0}}
    planted.pop("checksum")
    (tmp_path / name).write_text(json.dumps(planted))
    assert outputs(tmp_path) == model(X).tolist()


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, f"{WEIGHTS}.partial", OLD])
def test_an_adapter_is_not_written_through_links(tmp_path, name):
    outside, folder = tmp_path / "outside", tmp_path / "adapter"
    outside.write_text("mine")
    folder.mkdir()
    (folder / name).symlink_to(outside)
    model = saved(folder)
    assert outside.read_text() == "mine"
    assert outputs(folder) == model(X).tolist()


def in_processes(*calls):
    """Whether each call ended without an error, all in processes of their own at the same time."""
    children = []
    for call in calls:
        if not (child := os.fork()):
            try:
                torch.set_num_threads(1)  # the threads of this process do not exist in its child
                call()
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    return [os.waitpid(child, 0)[1] == 0 for child in children]


@pytest.mark.parametrize("save", [save_adapter, save_peft])
def test_processes_that_save_into_one_folder_leave_one_complete_adapter(tmp_path, save):
    """Also of all ranks of a parallel run, which hold equal weights, each save succeeds."""
    models = [saved(tmp_path / "0")] + [randomise(randomise(adapted(alpha=alpha))) for alpha in (3, 5, 7)]
    folder = tmp_path / "shared"
    for _ in range(5):
        assert all(in_processes(*(lambda model=model: [save(model, folder) for _ in range(5)] for model in models)))
        loaded = (load_peft if save is save_peft else load_adapter)(fresh_base(), folder)(X)
        assert any(torch.allclose(loaded, model(X), atol=1e-6) for model in models)
        assert len(contents(folder)) == 2


def test_an_adapter_that_is_replaced_meanwhile_loads(tmp_path):
    model, other = saved(tmp_path), another()

    def write():
        for i in range(40):
            save_adapter((other, model)[i % 2], tmp_path)

    def read():
        expected = [model(X).tolist(), other(X).tolist()]
        assert all(load_adapter(fresh_base(), tmp_path)(X).tolist() in expected for _ in range(25))

    assert all(in_processes(write, read, read))


@pytest.mark.parametrize("save", [save_adapter, save_peft])
def test_an_adapter_that_was_loaded_is_saved_into_its_own_folder(tmp_path, save):
    """Where tensors lie in a map of their file, writing over that file would empty them."""
    model = saved(tmp_path)
    save(model, tmp_path)
    before = contents(tmp_path)
    loaded = (load_peft if save is save_peft else load_adapter)(fresh_base(), tmp_path)
    expected = loaded(X).tolist()
    save(loaded, tmp_path)
    assert loaded(X).tolist() == expected
    assert contents(tmp_path).keys() == before.keys()
    again = (load_peft if save is save_peft else load_adapter)(fresh_base(), tmp_path)
    assert torch.allclose(again(X), model(X), atol=1e-5)


def test_processes_that_save_into_a_folder_that_none_has_made_all_succeed(tmp_path):
    model = randomise(adapted())
    for i in range(5):
        folder = tmp_path / str(i) / "deep" / "adapter"
        assert all(in_processes(*[lambda folder=folder: save_adapter(model, folder)] * 4))
        assert outputs(folder) == model(X).tolist()


def endless(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    path.touch()
    os.truncate(path, 2**40)


def empty_tensors(path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"tensor-{i}": entry for i in range(20_000)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("make", [os.mkfifo, endless, sparse, empty_tensors])
def test_files_that_a_model_could_not_have_written_are_refused_unread(tmp_path, name, make):
    """Those of peft's format too."""
    save_peft(randomise(adapted()), tmp_path / "peft")
    theirs = tmp_path / "peft" / {WEIGHTS: "adapter_model.safetensors", CONFIG: "adapter_config.json"}[name]
    theirs.unlink()
    make(theirs)
    with pytest.raises(UserError, match=r"no regular file|the most possible|no readable"):
        load_peft(fresh_base(), tmp_path / "peft")
    saved(tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(UserError, match=r"no regular file|the most possible|no safetensors file"):
        load_adapter(fresh_base(), tmp_path)


HUGE = [
    {"method": "lora", "density": 1e-7, "r": 65536},
    {"method": "vera", "r": 65536},
    {"method": "adalora", "r": 1, "init_r": 65536},
    {"method": "loha", "r": 65536},
    {"method": "adamix", "r": 512, "num_experts": 256},
    {"method": "lora-allocated", "r": 4, "max_r": 65536},
]


@pytest.mark.parametrize("settings", HUGE, ids=lambda settings: settings["method"])
def test_settings_that_make_far_more_than_the_file_holds_are_refused_before_anything_is_made(
    tmp_path, settings, monkeypatch
):
    saved(tmp_path)

    def change(record):
        record["config"] = Method(**settings).to_dict()
        record["plan"]["targets"] = [{"path": "second", "slices": None}]

    edit_record(tmp_path, change)
    monkeypatch.setattr(loading, "build", lambda *_: pytest.fail("layers were made"))
    base = fresh_base()
    base.second = nn.Linear(768, 768)
    with pytest.raises(UserError, match="holds less of second than its config says"):
        load_adapter(base, tmp_path)


@pytest.mark.parametrize("settings", [{"method": "vera", "r": 3000}, {"r": 600}, {"r": 600, "density": 0.01}], ids=str)
def test_a_large_rank_of_which_the_file_holds_its_share_comes_back(tmp_path, settings):
    plan = Plan((Target("first"), Target("second")), head=("head",))
    model = randomise(inject(fresh_base(), Method(**settings), plan)).eval()
    save_adapter(model, tmp_path)
    assert outputs(tmp_path) == model(X).tolist()


def test_a_changed_record_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    saved(tmp_path)
    edit_record(tmp_path, lambda record: record["config"].update(r=300), sealed=True)
    monkeypatch.setattr(loading, "build", lambda *_: pytest.fail("layers were made"))
    with pytest.raises(UserError, match="changed after it was written"):
        load_adapter(fresh_base(), tmp_path)


def test_files_of_the_first_version_load(tmp_path):
    """As `capaboost-1` was written before it had checksums, a fingerprint and further parameters."""
    model = saved(tmp_path)
    known = {"format", "base_model", "config", "plan", "mask_checksum"}
    edit_record(tmp_path, lambda record: [record.pop(key) for key in record.keys() - known])
    assert json.loads((tmp_path / CONFIG).read_text()).keys() == known
    assert outputs(tmp_path) == model(X).tolist()


class Savable(Net):
    def save_pretrained(self, folder):
        Path(folder).mkdir()


def test_what_deepspeed_has_partitioned_is_not_saved_as_nothing(tmp_path):
    model = randomise(inject(Savable(), config_of("lora"), PLAN))
    model.save_pretrained(tmp_path / "gathered")
    assert (tmp_path / "gathered" / FOLDER / "adapter.safetensors").is_file()
    for parameter in model.parameters():
        parameter.ds_id, parameter.data = 0, torch.empty(0)  # as ZeRO-3 leaves them between the layers' passes
    model.save_pretrained(tmp_path / "partitioned")
    assert list((tmp_path / "partitioned").iterdir()) == []
    with pytest.raises(UserError, match="DeepSpeed has partitioned the weights; save within deepspeed"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
