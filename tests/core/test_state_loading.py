"""A wrong adapter file gives one line and leaves the model as it was, down to its hooks."""

import copy
import json
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from capaboost_core import CapaBoostConfig, Plan, Target, UserError, inject, load_adapter, merge, save_adapter, unload
from capaboost_core.adapter_files import load as loading
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from tests.core.adapter_case import CONFIG, WEIGHTS, edit_record, edit_tensors, saved, state_of
from tests.core.toy_model import PLAN, X, adapted, fresh_base, randomise


def truncate(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def edit(sealed=False, **changes):
    def change(record):
        for key, value in changes.items():
            record[key] = record[key] | value if isinstance(value, dict) else value

    return lambda folder: edit_record(folder, change, sealed)


def plan(**changes):
    return lambda folder: edit_record(folder, lambda record: record["plan"].update(changes))


def slices(*pairs):
    return plan(targets=[{"path": "first", "slices": pairs}, {"path": "second", "slices": None}])


def tensor(name, change):
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: change(tensors[name])}))


def text(content):
    return lambda folder: (folder / CONFIG).write_text(content)


def raw(key, content):
    """A value that json.dumps does not write."""

    def apply(folder):
        edit_record(folder, lambda record: record["config"].update({key: "HERE"}))
        path = folder / CONFIG
        path.write_text(path.read_text().replace('"HERE"', content))

    return apply


def other_weights(folder):
    save_adapter(randomise(inject(fresh_base(), CapaBoostConfig(r=4, seed=5), PLAN)), folder / "other")
    (folder / "other" / WEIGHTS).rename(folder / WEIGHTS)


def weights_of_equal_masks(folder):
    saved(folder / "other", randomise(randomise(adapted())))
    (folder / "other" / WEIGHTS).rename(folder / WEIGHTS)


HEAD = "head.weight"
DAMAGE = {
    "truncated": (truncate, "truncated"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "missing"),
    "foreign weights": (lambda folder: (folder / WEIGHTS).write_text("PNG"), "truncated"),
    "weights a folder": (lambda folder: (folder / WEIGHTS).unlink() or (folder / WEIGHTS).mkdir(), "Is a directory"),
    "a bit": (flip_a_bit, "damaged"),
    "other weights": (other_weights, "different adapters"),
    "other weights, equal masks": (weights_of_equal_masks, "different adapters"),
    "no record": (lambda folder: (folder / CONFIG).unlink(), "save_adapter"),
    "half a record": (text("{"), "not JSON"),
    "empty record": (text("{}"), "no capaboost"),
    "a list": (text("[]"), "no capaboost"),
    "not text": (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe{}"), "not JSON"),
    "nested": (text("[" * 100_000), "nested too deeply"),
    "nested within": (raw("targets", "[" * 900 + "]" * 900), "targets|nested too deeply"),
    "other format": (edit(format="peft"), "no capaboost"),
    "other base": (edit(base_model="ViT"), "trained on ViT"),
    "base no text": (edit(base_model=3), "base_model must be text"),
    "other checksum": (edit(mask_checksum="0"), "different adapters"),
    "other seed": (edit(config={"seed": 1}), "masks"),
    "other r": (edit(config={"r": 8}), "masks"),
    "huge r": (edit(config={"r": 10**9}), "r is 1000000000"),
    "unknown setting": (edit(config={"rank": 8}), "unknown adapter setting"),
    "config a list": (edit(config=[]), "config must map"),
    "infinite alpha": (raw("alpha", "1e400"), "1e400"),
    "huge alpha": (raw("alpha", "1" + "0" * 400), "finite"),
    "nan": (raw("dropout", "NaN"), "NaN"),
    "changed alpha": (edit(True, config={"alpha": 3}), "changed after it was written"),
    "shifted slices": (
        lambda folder: edit_record(
            folder, lambda record: record["plan"]["targets"][0].update(slices=[[1, 17]]), sealed=True
        ),
        "changed after it was written",
    ),
    "reversed slices": (slices((16, 32), (0, 16)), "rising order"),
    "reversed slice": (slices((16, 0)), "rising order"),
    "overlapping slices": (slices((0, 16), (8, 24)), "rising order"),
    "negative slice": (slices((-16, 16)), "rising order"),
    "slice too long": (slices((20, 36)), "outside its 32 outputs"),
    "slice of numbers": (slices((0.0, 16.0)), "rising order"),
    "slice of one": (slices((16,)), "rising order"),
    "slice of truths": (slices((False, True)), "rising order"),
    "slices no list": (slices(3), "slices must be a list"),
    "no slices": (slices(), "rising order"),
    "no such target": (plan(targets=[{"path": "third", "slices": None}]), "no 'third'"),
    "target of another kind": (plan(targets=[{"path": "", "slices": None}]), "distinct names"),
    "target twice": (plan(targets=[{"path": "first", "slices": None}] * 2), "distinct names"),
    "no such head": (plan(head=["classifier"]), "no 'classifier'"),
    "head as text": (plan(head="head"), "plan.head must be a list"),
    "switch of no module": (plan(switches=[["blocks.99.attn", "qkv_bias_separate"]]), "switches"),
    "switch of a method": (plan(switches=[["", "forward"]]), "names|switches"),
    "switch of training": (plan(switches=[["first", "training"]]), "qkv_bias_separate only"),
    "switch that the module lacks": (plan(switches=[["first", "qkv_bias_separate"]]), "switches"),
    "three in a switch": (plan(switches=[["a", "b", "c"]]), "pairs"),
    "unknown extra": (edit(extra=["third.bias"]), "no 'third.bias'"),
    "extra not in the file": (edit(extra=["first.bias"]), "lacks first.bias"),
    "fingerprint a list": (edit(fingerprint=[]), "fingerprint must hold"),
    "fingerprint of texts": (edit(fingerprint={"values": {"first.weight": "a"}}), "fingerprint must hold"),
    "nan in the weights": (tensor(HEAD, lambda t: t / 0), "not finite"),
    "int8": (tensor(HEAD, lambda t: t.to(torch.int8)), "int8"),
    "bool": (tensor(HEAD, lambda t: t > 0), "bool"),
    "complex": (tensor(HEAD, lambda t: t.to(torch.complex64)), "complex64"),
    "too large for single precision": (tensor(HEAD, lambda t: t.double() + 1e300), "not finite"),
    "other shape": (tensor(HEAD, lambda t: t.T.contiguous()), "num_classes"),
    "additional tensor": (lambda f: edit_tensors(f, lambda t: t.update(more=torch.ones(1))), "has besides more"),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(HEAD)), "lacks head.weight"),
}


@pytest.mark.hard_case(5, 6, 24, "messages")
@pytest.mark.parametrize("into", [fresh_base, adapted])
@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_leave_the_model_as_it_was(tmp_path, case, into):
    damage, hint = DAMAGE[case]
    saved(tmp_path)
    damage(tmp_path)
    model = into()
    before = state_of(model)
    with pytest.raises(UserError, match=hint if into is fresh_base else None) as caught:
        load_adapter(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert state_of(model) == before


@pytest.mark.hard_case(5)
@pytest.mark.parametrize("into", [fresh_base, adapted])
@pytest.mark.parametrize("failing", ["attach", "copy_full"])
def test_what_fails_after_the_checks_is_undone(tmp_path, monkeypatch, failing, into):
    saved(tmp_path)
    model, calls, real = into(), [], getattr(loading, failing)
    before = state_of(model)

    def interrupted(*args):
        calls.append(real(*args))
        if len(calls) == (1 if failing == "attach" else 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(loading, failing, interrupted)
    if failing == "attach" and into is adapted:
        load_adapter(model, tmp_path)
        return
    with pytest.raises(KeyboardInterrupt):
        load_adapter(model, tmp_path)
    assert calls
    assert state_of(model) == before
    if into is adapted:
        assert not unload(model)._forward_hooks  # their handles work still


def test_other_configuration_and_other_head_are_named(tmp_path):
    saved(tmp_path)
    with pytest.raises(UserError, match=r"alpha: None there, 3\.0 here"):
        load_adapter(adapted(alpha=3), tmp_path)
    wider = fresh_base()
    wider.head = nn.Linear(16, 7)
    with pytest.raises(UserError, match="num_classes"):
        load_adapter(wider, tmp_path)
    with pytest.raises(UserError, match="unmerge"):
        load_adapter(merge(adapted()), tmp_path)


def test_a_model_without_values_is_refused(tmp_path):
    saved(tmp_path)
    with torch.device("meta"):
        model = fresh_base()
    with pytest.raises(UserError, match="meta device"):
        load_adapter(model, tmp_path)


# Name of the base that was trained on, name of the one it is loaded into, and whether its weights differ.
NAMES = {
    "same name": ("x/model", "x/model", False, None),
    "same name, other weights": ("x/model", "x/model", True, "warning"),
    "other owner": ("x/model", "y/model", False, "error"),
    "owner left out": ("x/model", "model", False, None),
    "owner left out, other weights": ("x/model", "model", True, "error"),
    "copy in a folder": ("x/model", "/copies/model", False, None),
    "copy in a folder, other weights": ("x/model", "/copies/model", True, "warning"),
    "copy under another name": ("x/model", "./mine", False, None),
    "copy under another name, other weights": ("x/model", "./mine", True, "error"),
    "moved folder": ("/old/place/model", "/new/model", False, None),
    "other model": ("x/model", "x/other", False, "error"),
}


def named(name):
    model = fresh_base()
    model.pretrained_cfg = {"architecture": name}
    return model


@pytest.mark.hard_case(24)
@pytest.mark.parametrize("case", NAMES)
def test_the_base_model_is_known_by_name_and_weights(tmp_path, case):
    trained_on, name, differs, expected = NAMES[case]
    adapter = randomise(inject(named(trained_on), CapaBoostConfig(r=4), PLAN))
    save_adapter(adapter, tmp_path)
    model = named(name)
    if differs:
        nn.init.normal_(model.second.weight)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if expected == "error":
            with pytest.raises(UserError, match="trained on x/model"):
                load_adapter(model, tmp_path)
        else:
            load_adapter(model, tmp_path)
    told = [str(warning.message) for warning in told if issubclass(warning.category, DifferentBaseWarning)]
    assert len(told) == (expected == "warning")
    assert all("second.weight" in line and "\n" not in line for line in told)


@pytest.mark.hard_case(24)
@pytest.mark.parametrize("trained", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("held", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 100.0])
def test_the_fingerprint_knows_the_weights_in_any_precision(tmp_path, trained, held, scale):
    def base(dtype):
        model = fresh_base()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
            model.first.bias.fill_(0.1 * scale)  # a constant is rounded one way
        return model.to(dtype)

    save_adapter(merge(randomise(inject(base(trained), CapaBoostConfig(r=4), PLAN))), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DifferentBaseWarning)
        load_adapter(base(held), tmp_path)
        if torch.half not in (trained, held) or scale > 1e-5:  # where half precision still tells them apart
            other = base(held)
            nn.init.normal_(other.second.weight, std=0.1 * scale)
            with pytest.raises(DifferentBaseWarning, match=r"second\.weight"):
                load_adapter(other, tmp_path)


def test_the_fingerprint_sees_weights_that_were_trained_and_then_forgotten(tmp_path):
    saved(tmp_path)
    model = adapted()
    nn.init.normal_(model.first.bias)
    with pytest.warns(DifferentBaseWarning, match=r"first\.bias"):
        load_adapter(model, tmp_path)
    edit_record(tmp_path, lambda record: record.pop("fingerprint"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(model, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value, here=()):
    """All paths into a JSON value."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*here, key))


def replaced(value, place, new):
    if not place:
        return new
    value = copy.copy(value)
    value[place[0]] = replaced(value[place[0]], place[1:], new)
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    model = fresh_base()
    model.first.qkv_bias_separate = False
    fuzzed = Plan(
        (Target("first", ((0, 8), (16, 24))), Target("second")), ("head",), (("first", "qkv_bias_separate"),)
    )
    model = inject(model, CapaBoostConfig(r=4), fuzzed)
    model.first.bias.requires_grad_(True)
    saved(path, randomise(model))
    edit_record(path, lambda record: None)
    return path


@pytest.mark.hard_case(5, 6, 24, "messages")
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_json_at_any_place_loads_or_gives_one_line(folder, data):
    path = folder / CONFIG
    whole = path.read_text()
    record = json.loads(whole)
    place = data.draw(st.sampled_from(list(places(record))))
    model = fresh_base()
    model.first.qkv_bias_separate = False
    before, line = state_of(model), None
    try:
        path.write_text(json.dumps(replaced(record, place, data.draw(JSON))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DifferentBaseWarning)
            load_adapter(model, folder)
    except UserError as error:
        line = str(error)
    finally:
        path.write_text(whole)
    if line is None:
        model(X)
    else:
        assert "\n" not in line
        assert state_of(model) == before
