"""An adapter folder of any content is loaded right, or refused in one line with the model as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from capaboost_core import CapaBoostConfig, inject, load_adapter, save_adapter
from tests.core.toy_model import PLAN, X, adapted, fresh_base, randomise
from tests.hard.oracle import attempt, bits, refused, scratch
from tests.hard.values import damaged, mutated

METHODS = ("lora", "padapter", "hadapter", "linear", "full")
WEIGHTS, CONFIG = "adapter.safetensors", "capaboost_config.json"
SEALS = (
    "checksum",
    "weights_sha256",
)  # files of 0.1.0 have none, so that what a seal would find must be found without
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64]
SPOILT = [float("nan"), float("inf"), float("-inf")]


class Stored(dict):
    """By method; left out of the reports of failed cases."""

    def __repr__(self) -> str:
        return "stored"


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Stored:
    """The weights and the record of an adapter of each method."""
    folder = tmp_path_factory.mktemp("adapters")
    for method in METHODS:
        save_adapter(randomise(adapted(method)), folder / method)
    return Stored(
        {m: ((folder / m / WEIGHTS).read_bytes(), json.loads((folder / m / CONFIG).read_text())) for m in METHODS}
    )


def unsealed(record):
    return {key: value for key, value in record.items() if key not in SEALS} if isinstance(record, dict) else record


def load_into(model, weights: bytes, record: bytes):
    """Try the two files; what is loaded has to be sound, and to come back from a file of its own."""
    with scratch() as folder:
        (folder / WEIGHTS).write_bytes(weights)
        (folder / CONFIG).write_bytes(record)
        loaded = attempt(lambda: load_adapter(model, folder), folder, model)
        if not refused(loaded):
            check(loaded, folder)
        return loaded


def check(loaded, folder: Path) -> None:
    assert all(bool(p.isfinite().all()) for p in loaded.parameters())
    assert bool(loaded.eval()(X).isfinite().all())
    again = load_adapter(fresh_base(), save_adapter(loaded, folder / "again")).eval()
    assert torch.equal(again(X), loaded(X))


def model_for(method: str, fresh: bool):
    return fresh_base() if fresh else adapted(method)


@given(data=st.data(), method=st.sampled_from(METHODS), sealed=st.booleans(), fresh=st.booleans())
def test_a_record_of_any_content(stored, data, method, sealed, fresh):
    weights, record = stored[method]
    record = data.draw(mutated(record if sealed else unsealed(record)))
    load_into(model_for(method, fresh), weights, json.dumps(record).encode())


@given(data=st.data(), method=st.sampled_from(("lora", "hadapter")))
def test_a_plan_or_configuration_of_any_content(stored, data, method):
    weights, record = stored[method]
    part = data.draw(st.sampled_from(["config", "plan"]))
    record = unsealed(record) | {part: data.draw(mutated(record[part]))}
    load_into(fresh_base(), weights, json.dumps(record).encode())


@given(data=st.data(), method=st.sampled_from(METHODS), fresh=st.booleans())
def test_tensors_renamed_resized_recast_or_not_finite(stored, data, method, fresh):
    weights, record = stored[method]
    tensors = load(weights)
    name = data.draw(st.sampled_from(sorted(tensors)))
    spoilt = data.draw(
        st.sampled_from(["drop", "rename", "flatten", "cut", "cast", "spoil", "add"]).flatmap(
            lambda kind: spoilings(kind, name, tensors)
        )
    )
    meta = {"format": record["format"], "mask_checksum": record["mask_checksum"]}
    loaded = load_into(model_for(method, fresh), save(spoilt, meta), json.dumps(unsealed(record)).encode())
    if not refused(loaded):
        kept = dict(loaded.named_parameters())
        assert spoilt.keys() <= kept.keys()
        for key, tensor in spoilt.items():
            value = tensor.to(kept[key].dtype).reshape(kept[key].shape)  # packed weights were vectors once
            assert torch.equal(kept[key].detach(), value), f"{key} is not as in the file"


def spoilings(kind: str, name: str, tensors: dict) -> st.SearchStrategy[dict]:
    rest, one = {key: value for key, value in tensors.items() if key != name}, tensors[name]
    if kind == "drop":
        return st.just(rest)
    if kind == "rename":
        return st.sampled_from([name + "x", name.upper(), f"module.{name}", "", "head.weight.extra"]).map(
            lambda new: rest | {new: one}
        )
    if kind == "flatten":
        return st.just(rest | {name: one.flatten() if one.dim() > 1 else one.reshape(1, -1)})
    if kind == "cut":
        return st.just(rest | {name: one.flatten()[1:].contiguous()})
    if kind == "cast":
        return st.sampled_from(DTYPES).map(lambda dtype: rest | {name: one.to(dtype)})
    if kind == "spoil":
        return st.sampled_from(SPOILT).map(
            lambda value: rest | {name: one.clone().index_fill_(0, torch.tensor(0), value)}
        )
    return st.sampled_from(["first.weight", "extra", "head.weight.x"]).map(lambda new: tensors | {new: one.clone()})


@given(data=st.data(), method=st.sampled_from(METHODS), file=st.sampled_from([WEIGHTS, CONFIG]))
def test_a_damaged_file_is_found_out(stored, data, method, file):
    weights, record = stored[method]
    text = json.dumps(record, indent=2).encode()
    spoilt = data.draw(damaged(weights if file == WEIGHTS else text))
    weights, text = (spoilt, text) if file == WEIGHTS else (weights, spoilt)
    loaded = load_into(fresh_base(), weights, text)
    if not refused(loaded):
        whole = load_into(fresh_base(), stored[method][0], json.dumps(record).encode())
        for (name, one), (_, other) in zip(loaded.named_parameters(), whole.named_parameters(), strict=True):
            assert bits(one) == bits(other), f"{name} is another one, in silence"


@given(data=st.data(), method=st.sampled_from(METHODS))
def test_a_damaged_file_without_checksums_is_refused_or_sound(stored, data, method):
    weights, record = stored[method]
    text = json.dumps(unsealed(record), indent=2).encode()
    if data.draw(st.booleans()):
        weights = data.draw(damaged(weights))
    else:
        text = data.draw(damaged(text))
    load_into(fresh_base(), weights, text)


SETTINGS = {
    "method": st.sampled_from(METHODS),
    "r": st.integers(1, 9),
    "num_tied": st.integers(1, 8),
    "density": st.sampled_from([0.01, 0.25, 0.5, 0.9, 1.0]),
    "mask": st.sampled_from(["random", "same", "dropout", "nm"]),
    "n": st.none() | st.integers(1, 4),
    "m": st.none() | st.sampled_from([2, 4]),
    "seed": st.integers(0, 2**40),
    "alpha": st.none() | st.floats(0.1, 100),
    "init": st.sampled_from(["lora", "official"]),
}


@given(values=st.fixed_dictionaries({}, optional=SETTINGS))
def test_every_configuration_comes_back_or_is_refused(values):
    with scratch() as folder:
        model = fresh_base()
        made = attempt(lambda: inject(model, CapaBoostConfig(**values), PLAN), folder, model)
        if refused(made):
            return
        randomise(made).eval()
        loaded = attempt(lambda: load_adapter(fresh_base(), save_adapter(made, folder / "adapter")), folder)
        assert not refused(loaded)
        assert torch.equal(loaded.eval()(X), made(X))
