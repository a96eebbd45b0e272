"""Checkpoints: damage is found, the one before is used, fields are validated."""

import hashlib
import io
import itertools
import random

import pytest
import torch
from torch import nn

from capaboost.training import result as provenance
from capaboost.training.checkpoint import FORMAT
from capaboost_core import CapaBoostConfig, Plan, Target, UserError, inject
from capaboost_core.adapter_files.base_model import base_hash, beside_base
from tests.core.toy_run import Toy, model, run, same, stopping_at


@pytest.fixture
def cut(tmp_path):
    """A run that stopped after two epochs, and the weights of one that did not."""
    whole, _ = run(tmp_path / "whole", network=model(dropout=0.5))
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", task=stopping_at(3), network=model(dropout=0.5))
    return tmp_path / "cut", whole


def goes_on(folder, **changes):
    return run(folder, network=model(dropout=0.5), resume=True, **changes)[0]


def flip(data: bytes, seed: int) -> bytes:
    place = random.Random(seed).randrange(8 * len(data))
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


DAMAGE = {f"bit {seed}": lambda data, seed=seed: flip(data, seed) for seed in range(8)} | {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"no checkpoint",
    "longer": lambda data: data + b"\0",
}


@pytest.mark.hard_case(25)
@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_and_the_checkpoint_before_gives_the_same_weights(cut, case, capsys):
    folder, whole = cut
    newest = folder / "checkpoint.pt"
    newest.write_bytes(DAMAGE[case](newest.read_bytes()))
    assert same(whole, goes_on(folder))
    said = capsys.readouterr().out
    assert "checkpoint.pt is damaged" in said
    assert "going on from checkpoint.previous.pt" in said


def test_the_sound_checkpoint_outlives_the_save_after_a_damaged_one(cut):
    folder, whole = cut
    (folder / "checkpoint.pt").write_bytes(b"")
    before = (folder / "checkpoint.previous.pt").read_bytes()
    with pytest.raises(InterruptedError):
        goes_on(folder, task=stopping_at(2))
    assert (folder / "checkpoint.previous.pt").read_bytes() == before
    assert same(whole, goes_on(folder))


@pytest.mark.hard_case(25)
def test_two_damaged_checkpoints_are_refused(cut):
    folder, _ = cut
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged or of another version .*; choose another"):
        goes_on(folder)


def test_a_checkpoint_of_the_first_format_is_refused(cut):
    folder, _ = cut
    (folder / "checkpoint.previous.pt").unlink()
    torch.save({"fingerprint": {}, "epoch": 2}, folder / "checkpoint.pt")
    with pytest.raises(UserError, match="of another version"):
        goes_on(folder)


def reshape(state):
    state["parameters"]["3.weight"] = torch.zeros(3, 15)


def shrink_moments(state):
    state["stepper"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2)


EDITS = {
    "a shape": reshape,
    "a name": lambda state: state["parameters"].update(other=torch.zeros(1)),
    "moments": shrink_moments,
    "groups": lambda state: state["stepper"]["optimizer"]["param_groups"].clear(),
    "a list": lambda state: state.update(parameters=[]),
    "no field": lambda state: state.pop("metrics"),
    "a field": lambda state: state.update(more=1),
    "a best epoch": lambda state: state.update(best={"value": 1.0}),
    "a fingerprint": lambda state: state.update(fingerprint=None),
}


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("case", EDITS)
def test_edited_fields_are_found_even_under_a_right_checksum(cut, case):
    folder, _ = cut
    (folder / "checkpoint.previous.pt").unlink()
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    EDITS[case](state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
    (folder / "checkpoint.pt").write_bytes(buffer.getvalue() + FORMAT + digest)
    before = sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    with pytest.raises(UserError, match="damaged"):
        goes_on(folder)
    assert sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()) == before


class Hashed(Toy):
    labels = "as they were"

    def fingerprint(self):
        return self.labels


@pytest.mark.hard_case(26)
def test_changed_labels_are_refused(tmp_path, monkeypatch):
    run(tmp_path, task=Hashed)
    monkeypatch.setattr(Hashed, "labels", "edited")
    with pytest.raises(UserError, match="training rows and labels: as they were there, edited here"):
        run(tmp_path, task=Hashed, resume=True)


@pytest.mark.hard_case(26)
def test_another_number_of_threads_is_said(cut, capsys):
    folder, _ = cut
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        goes_on(folder)
    finally:
        torch.set_num_threads(before)
    assert "note: not bit-identical to a run without a stop (device: cpu" in (said := capsys.readouterr().out)
    assert f"threads: {before} there, {before + 1} here" in said


@pytest.mark.hard_case("messages")
def test_a_path_is_the_same_however_it_is_typed(tmp_path, monkeypatch):
    from capaboost.training.checkpoint import differences

    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for other in ("data/", "./data", str(tmp_path / "data"), "../" + tmp_path.name + "/data"):
        assert differences({"data": {"dir": "data"}}, {"data": {"dir": other}}) == []
    assert differences({"data": {"dir": "data"}}, {"data": {"dir": "elsewhere"}})


@pytest.mark.hard_case("messages")
def test_a_disk_that_fills_up_keeps_the_last_checkpoint(cut):
    resource = pytest.importorskip("resource")
    folder, whole = cut
    before = (folder / "checkpoint.pt").read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, old[1]))
    try:
        with pytest.raises((OSError, UserError)):
            goes_on(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert same(whole, goes_on(folder))


@pytest.mark.parametrize("deleted", ["checkpoint.pt", "checkpoint.previous.pt", "metrics.jsonl", "run.lock"])
def test_what_is_deleted_while_a_run_lives_ends_it_in_nothing_else(tmp_path, deleted):
    """The next checkpoint is complete, and goes on to the same weights."""

    class Deleted(Toy):
        def evaluate(self, model):
            if self.evaluations == 1:
                (tmp_path / "run" / deleted).unlink(missing_ok=True)
            if self.evaluations == 3:
                raise InterruptedError
            return super().evaluate(model)

    whole, _ = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "run", task=Deleted)
    assert same(whole, run(tmp_path / "run", resume=True)[0])


def network(method=None, seed=None, change=None):
    """The toy model with a norm, perhaps adapted; `change` is what happens to its pretrained tensors."""
    base = model()
    base.insert(1, nn.BatchNorm1d(16).requires_grad_(False))
    if change:
        with torch.no_grad():
            change(base)
    if method is None:
        return base
    settings = {"seed": seed} if seed else {}
    return inject(base, CapaBoostConfig(method, **settings), Plan((Target("0"),), ("4",)))


def other_weight(base):
    base[0].weight.mul_(1.01)


def other_bias(base):
    base[0].bias.add_(0.01)


def other_statistics(base):
    base[1].running_mean.add_(0.5)


def other_head(base):
    base[4].weight.mul_(2.0)


METHODS = ["lora", "vera", "bitfit", "full"]
CHANGES = [other_weight, other_bias, other_statistics]


@pytest.mark.parametrize(("method", "change"), [(None, other_weight), *itertools.product(METHODS, CHANGES)])
def test_other_pretrained_weights_are_refused(tmp_path, method, change):
    with pytest.raises(InterruptedError):
        run(tmp_path, task=stopping_at(3), network=network(method))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match="was run on other pretrained weights: 1 tensors differ, such as"):
        run(tmp_path, network=network(method, change=change), resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    run(tmp_path, network=network(method), resume=True)


def one_bit(base):
    weight = base[0].weight
    weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(9.0))


def test_weights_that_differ_by_rounding_and_another_version_of_the_package_are_said(tmp_path, monkeypatch, capsys):
    with pytest.raises(InterruptedError):
        run(tmp_path, task=stopping_at(3), network=network("lora"))
    with monkeypatch.context() as patch:
        version = provenance.metadata.version
        patch.setattr(provenance.metadata, "version", lambda name: "9.9" if name == "capaboost" else version(name))
        with pytest.raises(InterruptedError):
            run(tmp_path, task=stopping_at(1), network=network("lora", change=one_bit), resume=True)
    said = capsys.readouterr().out
    assert "not bit-identical" in said
    assert "pretrained weights: " in said
    assert "versions.capaboost: " in said


@pytest.mark.parametrize("method", METHODS)
def test_the_hash_of_pretrained_weights_is_of_nothing_else(method):
    def hash_of(*args, **options):
        return base_hash(made := network(*args, **options), beside_base(made))

    expected = hash_of("lora")
    assert hash_of(method) == expected
    assert hash_of(method, change=other_head) == expected
    if method == "vera":
        assert hash_of(method, seed=7) == expected
    assert len({hash_of(method, change=change) for change in CHANGES}) == 3
    assert hash_of(method, change=one_bit) != expected
