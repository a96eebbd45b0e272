"""Several adapters of one model by name: each computes, trains and saves as in a model of its own."""

import copy
import io
import itertools
import pickle
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import capaboost_text
import capaboost_vision
from capaboost_core import (
    CapaBoostConfig,
    UserError,
    active_adapter,
    adapter_names,
    delete_adapter,
    disable,
    inject,
    load_adapter,
    merge,
    merged,
    mixed_batch,
    save_adapter,
    set_adapter,
    trainable_parameters,
    unload,
    unmerge,
)
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from tests.compatibility.models import base, drawn
from tests.core.adapter_case import contents, edit_record, edit_tensors
from tests.core.toy_model import PLAN, X, config_of, fresh_base, garbage, randomise
from tests.core.toy_model import adapted as adapted_net
from tests.methods.cases import each_case, settings
from tests.vision.models import create, image

IMAGES = drawn("eight images", (8, 3, 32, 32), 1.0)
TOKENS = torch.arange(40).reshape(8, 5) % 50
ROW_BY_ROW = {  # what a batch may mix
    "lora": ("lora", {}),
    "tied": ("capaboost-lora", {}),
    "other d, r and density": ("capaboost-lora", {"r": 2, "num_tied": 4, "density": 0.25, "seed": 1}),
    "n:m masks": ("capaboost-lora", {"mask": "nm", "n": 2, "m": 4, "seed": 2}),
    "all layers": ("lora", {"targets": "all-linear", "scaling": "alpha-r", "alpha": 2}),
    "bottlenecks": ("capaboost-hadapter", {}),
    "scales": ("ssf", {}),
    "peft's": ("dora", {}),
}
TRAINS_THE_BASE = ("bitfit", "full")
ROWS = ["tied", "lora", None, "n:m masks", "bottlenecks", "tied", "default", "all layers"]


def own(kind, name, preset="capaboost-lora", **changes):
    """A model in double precision with one adapter, whose additions and head are drawn after its name."""
    model = (capaboost_text if kind == "bert" else capaboost_vision).inject(
        base(kind).double(), settings(preset, **changes)
    )
    with torch.no_grad():
        for key, parameter in trainable_parameters(model).items():
            parameter.copy_(drawn(f"{name}.{key}", tuple(parameter.shape), 0.2))
    return model.eval()


def run(model, rows=slice(None)):
    x = TOKENS[rows] if hasattr(model, "config") else IMAGES[rows].double()
    return model(x).logits if hasattr(model, "config") else model(x)


def net(tmp_path, *others, **changes):
    """A tiny model with `default`, and capaboost adapters of other settings saved and loaded by name."""
    model = randomise(adapted_net(**changes))
    for name in others:
        torch.manual_seed(len(name))
        with_head = randomise(adapted_net(seed=len(name)))
        save_adapter(with_head, tmp_path / name)
        load_adapter(model, tmp_path / name, name=name)
    return model.eval()


def state(model):
    """All that a failure could change, of the model and of the adapters that are not active."""
    record, output = vars(model).get("capaboost_adapters"), model(X)  # first, as the watch for dead additions leaves
    return (
        adapter_names(model),
        active_adapter(model),
        [(path, id(module), sorted(vars(module))) for path, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.detach().clone().tolist()) for name, p in model.named_parameters()],
        [(key, value.tolist()) for key, value in (record.state("") if record else {}).items()],
        [len(hooks) for hooks in (model._forward_hooks, model._forward_pre_hooks, model._state_dict_hooks)],
        output.tolist(),
    )


@torch.no_grad()
@each_case
def test_a_second_adapter_of_any_method_computes_as_alone_and_the_first_comes_back_to_the_bit(preset, kind, tmp_path):
    alone = own(kind, "b", preset)
    save_adapter(alone, tmp_path / "b")
    model = own(kind, "a", preset if preset in TRAINS_THE_BASE else "lora")
    before, keys, expected = run(model), [*model.state_dict()], run(alone)
    load_adapter(model, tmp_path / "b", name="b")
    assert (adapter_names(model), active_adapter(model)) == (("default", "b"), "default")
    assert torch.equal(run(model), before)
    set_adapter(model, "b")
    assert torch.equal(run(model), expected)
    assert {*trainable_parameters(model)} == {*trainable_parameters(alone)}
    save_adapter(model, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "b")
    set_adapter(model, "default")
    assert torch.equal(run(model), before)
    save_adapter(model, tmp_path / "beside", name="b")
    assert contents(tmp_path / "beside") == contents(tmp_path / "b")
    delete_adapter(model, "b")
    assert (adapter_names(model), [*model.state_dict()]) == (("default",), keys)
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("first", ["lora", "bitfit"])
def test_what_trains_other_parts_of_the_base_is_refused_beside_an_adapter(first, tmp_path):
    save_adapter(own("vit", "b", {"lora": "bitfit", "bitfit": "lora"}[first]), tmp_path)
    model = own("vit", "a", first)
    before = run(model)
    with pytest.raises(UserError, match="model of its own"):
        load_adapter(model, tmp_path, name="b")
    assert adapter_names(model) == ("default",)
    assert torch.equal(run(model), before)


def test_what_trains_besides_after_loading_is_not_shared_silently(tmp_path):
    model = net(tmp_path, "b")
    model.first.bias.requires_grad_(True)
    before = state(model)
    with pytest.raises(UserError, match=r"first\.bias trains with the active adapter and is shared"):
        set_adapter(model, "b")
    assert state(model) == before


def of_many(kind, folder):
    model = own(kind, "default")
    for number, (name, (preset, changes)) in enumerate(ROW_BY_ROW.items()):
        save_adapter(own(kind, name, preset, **changes), folder / str(number))
        load_adapter(model, folder / str(number), name=name)
    return model


def separately(model, row, name, active):
    """One row in a pass of its own; None is the base with the head of the active adapter."""
    set_adapter(model, name or active)
    with disable(model) if name is None else nullcontext():
        return run(model, slice(row, row + 1))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_rows_of_a_batch_take_their_adapters_and_heads_as_separate_passes_do(kind, tmp_path):
    model = of_many(kind, tmp_path)
    for active in ("default", "n:m masks"):
        expected = [separately(model, row, name, active) for row, name in enumerate(ROWS)]
        set_adapter(model, active)
        before = run(model)
        with mixed_batch(model, ROWS):
            mixed = run(model)
        torch.testing.assert_close(mixed, torch.cat(expected), atol=1e-12, rtol=0)
        assert torch.equal(run(model), before)
        assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(mixed))


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "beit_base_patch16_224"])
def test_rows_keep_their_windows(name, tmp_path):
    """Swin computes windows of an image as rows, BEiT reads the weight of its qkv unless told not to."""

    def adapted(adapter):
        model = capaboost_vision.inject(create(name).double(), "capaboost-lora")
        for key, parameter in trainable_parameters(model).items():
            parameter.copy_(drawn(adapter + key, tuple(parameter.shape), 0.2))
        return model.eval()

    save_adapter(adapted("b"), tmp_path)
    model = load_adapter(adapted("a"), tmp_path, name="b")
    x = torch.cat([image(model)] * 2).double()
    first = model(x[:2])
    set_adapter(model, "b")
    second = model(x[2:])
    with mixed_batch(model, ["default", "default", "b", "b"]):
        torch.testing.assert_close(model(x), torch.cat([first, second]), atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_a_decoder_generates_for_rows_of_different_adapters(beams, tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)

    def adapted(adapter, **changes):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=50, pad_token_id=0, **sizes)).double().eval()
        inject(model, CapaBoostConfig(targets=["q_proj", "v_proj"], **changes))
        for key, parameter in trainable_parameters(model).items():
            parameter.copy_(drawn(adapter + key, tuple(parameter.shape), 0.5))
        return model

    def tokens(rows):
        return model.generate(prompts[rows], max_new_tokens=6, min_new_tokens=6, num_beams=beams, do_sample=False)

    save_adapter(adapted("b", r=2, num_tied=4), tmp_path)
    model, prompts = load_adapter(adapted("a", r=4), tmp_path, name="b"), torch.tensor([[3, 4], [6, 7], [3, 4]])
    with mixed_batch(model, [name for name in ("b", "default", "default") for _ in range(beams)]):
        mixed = tokens(slice(None))
    assert torch.equal(mixed[1:], tokens(slice(1, None)))
    set_adapter(model, "b")
    assert torch.equal(mixed[:1], tokens(slice(1)))
    assert not torch.equal(mixed[0], mixed[2])


def test_positions_are_no_rows():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24))  # fmt: skip
    inject(model.eval(), CapaBoostConfig(targets=["q_proj", "v_proj"]))
    batch = {"input_ids": torch.ones(4, 2, dtype=torch.long), "cache_position": torch.arange(2)}
    with (
        pytest.raises(UserError, match="lists 2 adapters for a batch of 4 rows"),
        mixed_batch(model, ["default", None]),
    ):
        model(**batch)


@pytest.mark.parametrize("preset", ["vpt-deep", "prefix", "noah", "adaptformer", "full"])
def test_a_mixed_batch_refuses_what_is_more_than_layers_of_single_rows(preset, tmp_path):
    save_adapter(own("vit", "b", preset), tmp_path)
    model = load_adapter(own("vit", "a", "full" if preset == "full" else "lora"), tmp_path, name="b")
    modules, before = dict(model.named_modules()), run(model)
    with pytest.raises(UserError, match="run a forward pass for each adapter"), mixed_batch(model, ["default", "b"]):
        pass
    assert dict(model.named_modules()) == modules
    assert torch.equal(run(model), before)


REFUSED_ROWS = {
    "b": "list a name for each row",
    (): "list a name for each row",
    ("b", "x"): "no adapter 'x'",
    ("b", "bb"): "2 adapters for a batch of 5 rows",  # nor for one of four rows, as two windows of each
    ("b",) * 6: "6 adapters for a batch of 5 rows",
}


@pytest.mark.parametrize("rows", REFUSED_ROWS)
def test_wrong_rows_are_refused(rows, tmp_path):
    model = net(tmp_path, "b", "bb")
    before = state(model)
    with pytest.raises(UserError, match=REFUSED_ROWS[rows]), mixed_batch(model, rows):
        model(X)
    if len(rows) == 2 and "x" not in rows:
        with pytest.raises(UserError, match="2 adapters for a batch of 4 rows"), mixed_batch(model, rows):
            model(X[:4])
    assert state(model) == before


def test_a_layer_without_the_rows_and_a_weight_read_past_its_layer_are_refused(tmp_path):
    model = net(tmp_path, "b")
    with mixed_batch(model, ["b", "default", None]), pytest.raises(UserError, match="rows in the first dimension"):
        model.head(X)
    with pytest.raises(UserError, match="past the layer"), mixed_batch(model, ["b", "default"]):
        nn.functional.linear(X, model.head.weight)


def test_a_mixed_batch_is_for_one_thread_and_evaluation(tmp_path):
    model, errors = net(tmp_path, "b"), []

    def elsewhere():
        try:
            model(X)
        except UserError as error:
            errors.append(str(error))

    with mixed_batch(model, ["b", "default", None, "b", "b"]):
        assert not model(X).requires_grad
        with disable(model):
            disabled = model(X)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        for change in (set_adapter, delete_adapter, lambda m, name: save_adapter(m, tmp_path / "x", name=name)):
            with pytest.raises(UserError, match="mixed_batch context"):
                change(model, "b")
        for change in (merge, unmerge, unload, save_adapter_of(tmp_path)):
            with pytest.raises(UserError, match="mixed_batch context"):
                change(model)
    assert len(errors) == 1
    assert "thread" in errors[0]
    with disable(model):
        assert torch.allclose(model(X)[1:3], disabled[1:3])
    with pytest.raises(UserError, match=r"model\.eval"), mixed_batch(model.train(), ["b"] * 5):
        pass


def save_adapter_of(folder):
    return lambda model: save_adapter(model, folder / "x")


def damaged(folder, how):
    if how == "values":
        edit_tensors(folder, lambda tensors: tensors["second.lora_A.packed"].fill_(float("nan")))
    elif how == "classes":
        edit_tensors(folder, lambda t: t.update({"head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)}))
    elif how == "no head":
        edit_record(folder, lambda record: record["plan"].update(head=[]))
    elif how == "masks":
        edit_record(folder, lambda record: record["config"].update(seed=7), sealed=False)
    else:
        (folder / "adapter.safetensors").unlink()


@pytest.mark.parametrize("name", ["new", "b", "default"])
@pytest.mark.parametrize("how", ["values", "classes", "no head", "masks", "missing"])
def test_what_cannot_be_loaded_leaves_all_adapters_as_they_are(how, name, tmp_path):
    model = net(tmp_path, "b")
    before = state(model)
    damaged(tmp_path / "b", how)
    with pytest.raises(UserError) as caught:
        load_adapter(model, tmp_path / "b", name=name, replace=name != "new")
    assert "\n" not in str(caught.value)
    assert state(model) == before
    set_adapter(model, "b")
    set_adapter(model, "default")
    assert torch.equal(model(X), torch.tensor(before[-1]))


def test_an_interrupted_switch_leaves_the_adapters_as_they_are(tmp_path, monkeypatch):
    model = net(tmp_path, "b")
    before = state(model)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("capaboost_core.named.install", interrupted)
        for change in (lambda: set_adapter(model, "b"), lambda: load_adapter(model, tmp_path / "b", name="c")):
            with pytest.raises(KeyboardInterrupt):
                change()
            assert state(model) == before
    set_adapter(model, "b")
    assert active_adapter(model) == "b"


def test_names(tmp_path):
    model = net(tmp_path, "b")
    for name in ("", "a.b", 3, "state"):
        with pytest.raises(UserError, match="cannot name an adapter"):
            load_adapter(model, tmp_path / "b", name=name)
    for change in (set_adapter, delete_adapter, lambda m, name: save_adapter(m, tmp_path / "x", name=name)):
        with pytest.raises(UserError, match="no adapter 'defalt'; did you mean default"):
            change(model, "defalt")
    with pytest.raises(UserError, match="'default' is active"):
        delete_adapter(model, "default")
    with pytest.raises(UserError, match="replace=True"):
        load_adapter(model, tmp_path / "b", name="b")
    with pytest.raises(UserError, match="no adapter"):
        adapter_names(fresh_base())
    first = load_adapter(fresh_base(), tmp_path / "b", name="x")
    assert (adapter_names(first), active_adapter(first)) == (("x",), "x")


def test_an_adapter_is_replaced_where_it_is_asked_for_active_or_not(tmp_path):
    model = net(tmp_path, "b")
    save_adapter(randomise(adapted_net("padapter")), tmp_path / "other")
    expected = load_adapter(fresh_base(), tmp_path / "other").eval()(X)
    before = model(X)
    load_adapter(model, tmp_path / "other", name="b", replace=True)
    assert torch.equal(model(X), before)
    load_adapter(model, tmp_path / "other", name="default", replace=True)
    assert (adapter_names(model), active_adapter(model)) == (("default", "b"), "default")
    for name in ("default", "b"):
        assert torch.equal(set_adapter(model, name)(X), expected)


@pytest.mark.parametrize("mode", ["merged", "disabled"])
def test_a_model_that_is_merged_or_disabled_exchanges_nothing(mode, tmp_path):
    model = net(tmp_path, "b")
    with merged(model) if mode == "merged" else disable(model):
        before = state(model)
        for change in (
            lambda: set_adapter(model, "b"),
            lambda: load_adapter(model, tmp_path / "b", name="c"),
            lambda: mixed_batch(model, ["b"] * 5).__enter__(),
        ):
            with pytest.raises(UserError, match=mode[:-1]):
                change()
        assert state(model) == before


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, fully_shard])
def test_a_parallel_model_exchanges_nothing_and_is_saved(wrap, tmp_path):
    model = wrap(net(tmp_path, "b"))
    for change in (
        lambda: set_adapter(model, "b"),
        lambda: load_adapter(model, tmp_path / "b", name="c"),
        lambda: save_adapter(model, tmp_path / "c", name="b"),
        lambda: mixed_batch(model, ["b"] * 5).__enter__(),
    ):
        with pytest.raises(UserError, match="parallel"):
            change()
    save_adapter(model, tmp_path / "c")
    assert adapter_names(model) == ("default", "b")
    get_model_state_dict(model)


@torch.no_grad()
def test_merging_and_exporting_are_of_the_active_adapter(tmp_path):
    model = net(tmp_path, "b")
    weights = [model.first.weight.clone(), model.second.weight.clone()]
    first = model(X)
    set_adapter(model, "b")
    second = model(X)
    assert torch.allclose(merge(model)(X), second, atol=1e-4)
    assert torch.equal(unmerge(model)(X), second)
    assert all(map(torch.equal, weights, [model.first.weight, model.second.weight]))
    set_adapter(model, "default")
    assert torch.equal(model(X), first)
    set_adapter(model, "b")
    plain = unload(copy.deepcopy(model))
    assert torch.allclose(plain(X), second, atol=1e-4)
    assert not [name for name in vars(plain) if "capaboost" in name or name == "_apply"]
    inject(plain, config_of("lora"), PLAN)


def test_training_an_adapter_moves_it_alone_and_as_in_a_model_of_its_own(tmp_path):
    model = net(tmp_path, "b")
    alone = load_adapter(fresh_base(), tmp_path / "b")
    set_adapter(model, "b")
    assert {*trainable_parameters(model)} == {*trainable_parameters(alone)}
    optimizers = [torch.optim.AdamW(trainable_parameters(m).values(), lr=0.1) for m in (model, alone)]
    set_adapter(model, "default")
    first = model(X)
    set_adapter(model, "b")  # the parameters that the optimizer has
    for each, optimizer in zip((model, alone), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            each.train()(X).square().mean().backward()
            optimizer.step()
        each.eval()
    assert torch.equal(model(X), alone(X))
    set_adapter(model, "default")
    assert torch.equal(model(X), first)


def test_an_adapter_stays_frozen_where_it_was(tmp_path):
    model = net(tmp_path, "b")
    model.head.bias.requires_grad_(False)
    trained = {*trainable_parameters(model)}
    set_adapter(model, "b")
    assert {*trainable_parameters(model)} == trained | {"head.bias"}
    set_adapter(model, "default")
    assert {*trainable_parameters(model)} == trained


def test_an_adapter_takes_the_mode_that_the_model_has_by_then(tmp_path):
    save_adapter(randomise(adapted_net(dropout=0.5)), tmp_path / "drops")
    model = load_adapter(net(tmp_path), tmp_path / "drops", name="drops")
    for mode in (True, False):
        set_adapter(model, "default").train(mode)
        set_adapter(model, "drops")
        assert {module.training for module in model.modules()} == {mode}
        assert torch.equal(model(X), model(X)) != mode


def outputs(model):
    """Of each adapter."""
    active = active_adapter(model)
    x = X.to(next(model.parameters()).dtype)
    found = {name: set_adapter(model, name)(x).detach() for name in adapter_names(model)}
    set_adapter(model, active)
    return found


def through_a_file(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "there and back": lambda model: copy.deepcopy(model).double().float(),
    "meta, then loaded": lambda model: loaded(garbage(copy.deepcopy(model).to("meta")), model),
    "distributed checkpoint": lambda model: checkpointed(copy.deepcopy(model), model),
    "meta, then assigned": lambda model: loaded(copy.deepcopy(model).to("meta"), model, assign=True),
}


def checkpointed(model, source):
    set_model_state_dict(model, get_model_state_dict(source))
    return model


def loaded(model, source, **settings):
    model.load_state_dict(through_a_file(source), **settings)
    return model


@pytest.mark.parametrize("how", COPIES)
def test_adapters_that_are_not_active_are_moved_and_copied_with_the_model(how, tmp_path):
    model = net(tmp_path, "b", "bb")
    set_adapter(model, "b")
    expected, copied = outputs(model), COPIES[how](model)
    got = outputs(copied)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    for tensors in outputs(copied.double()).values():
        assert tensors.dtype == torch.float64
    assert all(torch.equal(now, expected[name]) for name, now in outputs(model).items())


def test_state_dicts_of_other_adapters_are_refused_before_anything_is_loaded(tmp_path):
    model = net(tmp_path, "b")
    first = model.state_dict()
    without_metadata = dict(first)
    single = {key: value for key, value in without_metadata.items() if "capaboost_adapters" not in key}
    set_adapter(model, "b")
    before = state(model)
    for given, message in ((first, "adapter 'default' is active"), (without_metadata, "has capaboost_adapters.b")):
        with pytest.raises(UserError, match=message):
            model.load_state_dict(given)
        assert state(model) == before
    set_adapter(model, "default")
    before = outputs(model)
    model.load_state_dict(single)
    model.load_state_dict(fresh_base().state_dict())  # leaves additions as they are
    assert outputs(model).keys() == before.keys()


LONG = pytest.mark.long  # 10 and 20 seconds


@pytest.mark.parametrize("kind", ["net", pytest.param("vit", marks=LONG), pytest.param("bert", marks=LONG)])
def test_switching_compiles_each_shape_once(kind, tmp_path):
    def adapted(name, **changes):
        return own(kind, name, **changes) if kind != "net" else randomise(adapted_net(**changes)).eval()

    def outputs(model):
        return run(model) if kind != "net" else model(X)

    torch.compiler.reset()
    model = adapted("default")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        outputs(compiled)
        for name, changes in {"same": {}, "d": {"num_tied": 4}}.items():
            save_adapter(adapted(name, **changes), tmp_path / name)
            load_adapter(compiled, tmp_path / name, name=name)
        graphs = [counters["stats"]["unique_graphs"]]
        for name in ("same", "default", "d", "same", "d", "default"):
            set_adapter(compiled, name)
            torch.testing.assert_close(outputs(compiled), outputs(model))
            graphs.append(counters["stats"]["unique_graphs"])
    assert [number - graphs[0] for number in graphs] == [0, 0, 0, 1, 1, 1, 1]


def operators(model):
    seen = []

    class Listing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    model.zero_grad()
    with Listing():
        model(X).sum().backward()
    return seen


def test_other_adapters_cost_a_step_nothing(tmp_path):
    model = net(tmp_path).train()
    operators(model)  # the first pass looks for dead additions
    before = operators(model)
    save_adapter(model, tmp_path / "b")
    load_adapter(model, tmp_path / "b", name="b")
    assert operators(model) == before
    set_adapter(model, "b")
    operators(model)
    assert operators(model) == before


def test_frozen_weights_that_differ_are_noticed(tmp_path):
    other = fresh_base()
    other.first.weight.data += 1
    save_adapter(randomise(inject(other, config_of("lora"), PLAN)), tmp_path / "other")
    model = net(tmp_path)
    with pytest.warns(DifferentBaseWarning, match=r"first\.weight") as caught:
        load_adapter(model, tmp_path / "other", name="b")
    assert {warning.filename for warning in caught} == {__file__}


def test_the_lines_of_the_page_run(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    lines = page.split("## Several adapters")[1].split("```python\n")[1].split("```")[0]
    model = net(tmp_path / "adapters", "pets")
    delete_adapter(model, "pets")
    monkeypatch.chdir(tmp_path)
    exec(lines, {"model": model, "images": X[:4], "save_adapter": save_adapter})
    assert capsys.readouterr().out.strip() == lines.split("# ")[3].splitlines()[0]
    assert contents(tmp_path / "adapters" / "copy") == contents(tmp_path / "adapters" / "pets")


def test_a_sequence_of_layers_has_no_further_one(tmp_path):
    model = inject(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3)), config_of("lora", targets=["0"]))
    save_adapter(randomise(model), tmp_path)
    load_adapter(model.eval(), tmp_path, name="b")
    assert len(model) == 2
    with mixed_batch(model, ["b", "default", None, "b", "b"]):
        assert model(X).shape == (5, 3)


def test_tied_parameters_are_exchanged_at_every_module(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(16, 16), nn.Linear(16, 16)
            self.again = nn.Linear(16, 16)
            self.again.weight = self.out.weight

        def forward(self, x):
            return self.again(self.out(self.first(x)))

    def adapted():
        torch.manual_seed(0)
        return inject(Tied(), config_of("lora", targets=["first"]), trainable=["out"]).eval()

    alone = randomise(adapted())
    save_adapter(alone, tmp_path)
    model = load_adapter(adapted(), tmp_path, name="b")
    before = model(X)
    set_adapter(model, "b")
    assert torch.equal(model(X), alone(X))
    assert model.again.weight is model.out.weight
    with mixed_batch(model, ["b", "default", "b", "b", "default"]):
        mixed = model(X)
    assert torch.allclose(mixed[1], before[1], atol=1e-5)
    assert torch.allclose(mixed[0], alone(X)[0], atol=1e-3)
