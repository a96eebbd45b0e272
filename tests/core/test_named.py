"""Several adapters of one model by name: each computes, trains and saves as in a model of its own."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from capaboost_core import (
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
from tests.core.adapter_case import contents, edit_record, edit_tensors
from tests.core.named_case import net, own, run, state
from tests.core.toy_model import PLAN, X, config_of, fresh_base, randomise
from tests.core.toy_model import adapted as adapted_net
from tests.methods.cases import each_case

TRAINS_THE_BASE = ("bitfit", "full")


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
    assert repr(vars(model)["capaboost_adapters"]).startswith("Adapters(active='default', adapters={'default': None, ")


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


def exchanges(folder):
    """What exchanges adapters of a model, as functions of it."""
    return (
        lambda model: set_adapter(model, "b"),
        lambda model: load_adapter(model, folder / "b", name="c"),
        lambda model: mixed_batch(model, ["b"] * 5).__enter__(),
    )


@pytest.mark.parametrize("mode", ["merged", "disabled"])
def test_a_model_that_is_merged_or_disabled_exchanges_nothing(mode, tmp_path):
    model = net(tmp_path, "b")
    with merged(model) if mode == "merged" else disable(model):
        before = state(model)
        for change in exchanges(tmp_path):
            with pytest.raises(UserError, match=mode[:-1]):
                change(model)
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
    for change in (*exchanges(tmp_path), lambda model: save_adapter(model, tmp_path / "c", name="b")):
        with pytest.raises(UserError, match="parallel"):
            change(model)
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
