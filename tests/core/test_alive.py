"""Nothing adapted is dead: what stands on a frozen layer is taken over by the adapted one, or refused in a line."""

import copy
import functools
import warnings
from importlib.util import find_spec
from types import MethodType

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from transformers import ViTConfig, ViTModel

from capaboost_core import (
    CapaBoostConfig,
    Plan,
    Target,
    UserError,
    disable,
    inject,
    liveness,
    load_adapter,
    merged,
    save_adapter,
    trainable_parameters,
    unload,
)
from capaboost_core.liveness import NoEffectWarning, check_alive, dead_layers
from tests.core.toy_model import PLAN, Net, X, fresh_base, randomise

METHODS = ("lora", "capaboost-lora", "padapter", "ssf")


def layers(model):
    return model.first, model.second


class Doubled(ModelHook):
    def post_forward(self, module, output):
        return 2 * output


def each(change):
    def changed(model):
        for layer in layers(model):
            change(layer)
        return model

    return changed


def hooked_twice(layer):
    add_hook_to_module(layer, Doubled())
    add_hook_to_module(layer, AlignDevicesHook(torch.device("cpu")), append=True)


def hooked_and_released(layer):
    add_hook_to_module(layer, Doubled())
    remove_hook_from_module(layer)  # leaves the class's own forward on the instance


TAKEN_OVER = {
    "dispatched by accelerate": lambda model: dispatch_model(model, {"": "cpu"}, force_hooks=True),
    "a hook of accelerate": each(lambda layer: add_hook_to_module(layer, Doubled())),
    "two of them": each(hooked_twice),
    "one that is gone": each(hooked_and_released),
    "a forward hook": each(lambda layer: layer.register_forward_hook(lambda module, x, y: 2 * y)),
    "pruned": each(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "pruned twice": each(
        lambda layer: [prune.random_unstructured(layer, n, 0.3) for n in ("weight", "bias", "weight")]
    ),
    "weight norm": each(weight_norm),
    "spectral norm": each(spectral_norm),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("situation", TAKEN_OVER)
def test_a_layer_that_carries_something_is_adapted_on_top_of_it(situation, name, tmp_path):
    def make():
        return TAKEN_OVER[situation](fresh_base().requires_grad_(False)).eval()

    base = make()(X).detach()
    model = inject(make(), name, PLAN)
    if name != "ssf":
        torch.testing.assert_close(model(X), base)
    for layer in layers(model):
        for parameter in layer.own_parameters().values():
            nn.init.normal_(parameter, std=0.3)
    out = model(X).detach()
    assert (out - base).abs().max() > 0.1
    with disable(model):
        torch.testing.assert_close(model(X), base)
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(make(), tmp_path)(X), out)
    assert torch.equal(copy.deepcopy(model)(X), out)
    with merged(model):
        torch.testing.assert_close(model(X), out, rtol=1e-4, atol=1e-4)
    expected = base if name == "padapter" else out
    unload(model, merge=name != "padapter")
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)  # and no hook computes the weight anew
    assert [type(module) for module in model.modules()] == [type(module) for module in Net().modules()]
    if name != "padapter":
        Net().load_state_dict(model.state_dict())


def test_a_hook_of_accelerate_may_be_taken_away_while_adapted():
    model = randomise(inject(each(lambda layer: add_hook_to_module(layer, Doubled()))(fresh_base()), "lora", PLAN))
    plain = randomise(inject(fresh_base(), "lora", PLAN))
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(model(X), plain(X))
    assert torch.equal(remove_hook_from_module(model, recurse=True)(X), plain(X))


@pytest.mark.parametrize("name", ["dora", "pissa", "shira", "vera"])
@pytest.mark.parametrize("situation", ["pruned", "weight norm", "spectral norm", "dispatched by accelerate"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.skipif(not find_spec("peft"), reason="the extra [peft] is not installed")
def test_methods_of_peft_see_the_weight_that_is_computed(situation, name):
    base = TAKEN_OVER[situation](fresh_base()).eval()
    expected = base(X)
    model = inject(base, CapaBoostConfig(name, targets=["first", "second"]))
    torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-5)
    for parameter in trainable_parameters(model).values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    out = model(X).detach()
    torch.testing.assert_close(unload(model)(X), out, rtol=1e-4, atol=1e-4)


def offloaded(layer):
    add_hook_to_module(layer, AlignDevicesHook("cpu", offload=True))


def twice(layer, x):
    return 2 * nn.Linear.forward(layer, x)


def twice_below_a_hook(layer):
    layer.forward = MethodType(twice, layer)
    add_hook_to_module(layer, Doubled())


REFUSED = {
    "a method": (lambda layer: setattr(layer, "forward", MethodType(twice, layer)), r"on the instance \(twice\)"),
    "a partial": (lambda layer: setattr(layer, "forward", functools.partial(twice, layer)), r"instance \(partial\)"),
    "a method below a hook": (twice_below_a_hook, r"on the instance \(twice\)"),
    "compiled": (lambda layer: layer.compile(), "target first was compiled without an adapter"),
    "offloaded": (offloaded, "target first is offloaded by accelerate"),
    "a parametrization": (parametrizations.weight_norm, "first is a ParametrizedLinear, not an nn.Linear"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_hide_an_adapter_is_refused_before_anything_changes(change, message, tmp_path):
    save_adapter(inject(fresh_base(), "lora", PLAN), tmp_path)
    model = fresh_base()
    change(model.first)
    modules, contents = list(model.modules()), [dict(vars(module)) for module in model.modules()]
    loaded = [] if change is offloaded else [lambda: load_adapter(model, tmp_path)]  # meta weights are refused before
    for adapt in (lambda: inject(model, "lora", PLAN), *loaded):
        with pytest.raises(UserError, match=message) as caught:
            adapt()
        assert "\n" not in str(caught.value)
        assert list(model.modules()) == modules
        assert [dict(vars(module)) for module in modules] == contents
        assert all(parameter.requires_grad for parameter in model.parameters())


HOOKS = {  # of a layer, given something to call
    "forward": lambda layer, call: layer.register_forward_hook(lambda *_: call()),
    "forward, always": lambda layer, call: layer.register_forward_hook(lambda *_: call(), always_call=True),
    "before forward": lambda layer, call: layer.register_forward_pre_hook(lambda *_: call()),
    "backward": lambda layer, call: layer.register_full_backward_hook(lambda *_: call()),
    "before backward": lambda layer, call: layer.register_full_backward_pre_hook(lambda *_: call()),
    "state": lambda layer, call: layer.register_state_dict_post_hook(lambda *_: call()),
    "before state": lambda layer, call: layer.register_state_dict_pre_hook(lambda *_: call()),
    "load": lambda layer, call: layer.register_load_state_dict_post_hook(lambda *_: call()),
    "before load": lambda layer, call: layer.register_load_state_dict_pre_hook(lambda *_: call()),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_of_a_frozen_layer_are_called_when_adapted_and_after(register):
    calls = []

    def step(model):
        model(X.clone().requires_grad_()).sum().backward()
        model.load_state_dict(model.state_dict())
        count = len(calls)
        calls.clear()
        return count

    model = fresh_base()
    handle = register(model.first, lambda: calls.append(1))
    assert step(model) == 1
    inject(model, "lora", PLAN)
    assert step(model) == 1
    assert step(unload(model)) == 1
    if register not in (HOOKS["load"], HOOKS["before load"]):  # bound to the layer that loads, so they are copies
        handle.remove()
        assert step(model) == 0


def test_a_hook_can_be_taken_away_while_adapted():
    model, calls = fresh_base(), []
    handle = model.first.register_forward_hook(lambda *_: calls.append(1))
    inject(model, "lora", PLAN)
    handle.remove()
    model(X)
    assert not calls


class Repeated(nn.Module):
    """One layer at three paths, two of them in a list, and a block with a layer at two."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer, self.block = nn.Linear(16, 16), nn.ModuleDict({"inner": nn.Linear(16, 16)})
        self.layers, self.last, self.again = nn.ModuleList([layer, layer]), layer, self.block

    def forward(self, x):
        for layer in (*self.layers, self.last):
            x = layer(x)
        return self.again["inner"](self.block["inner"](x))


@pytest.mark.parametrize("target", ["layers.0", "layers.1", "last"])
def test_a_layer_at_several_paths_is_adapted_at_all_of_them(target, tmp_path):
    model, base = Repeated(), Repeated()(X)
    inject(model, CapaBoostConfig("lora", targets=[target, "inner"]))
    assert model.layers[0] is model.layers[1] is model.last
    assert len(trainable_parameters(model)) == 4  # A and B of two layers
    randomise(model)
    delta = {path: model.get_submodule(path).delta_weights()[0] for path in ("last", "block.inner")}
    plain = Repeated()
    with torch.no_grad():
        for path, increment in delta.items():
            plain.get_submodule(path).weight += increment
    torch.testing.assert_close(model(X), plain(X), rtol=1e-3, atol=1e-2)
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(Repeated(), tmp_path)(X), model(X))
    with disable(model):
        assert torch.equal(model(X), base)
    unload(model, merge=False)
    assert type(model.last) is nn.Linear
    assert model.layers[0] is model.layers[1] is model.last
    assert torch.equal(model(X), base)


WRAPPERS = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "twice": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.parametrize("preset", ["lora", "linear", "full"])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_is_refused_before_anything_changes(wrap, preset):
    model = wrap(fresh_base().requires_grad_(False))
    with pytest.raises(UserError, match="inject into the model in it, and wrap it then"):
        inject(model, preset, PLAN)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_part_in_a_wrapper_is_refused():
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(4, 4))), nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"0\._orig_mod\.0 is compiled or checkpointed by a wrapper; inject first"):
        inject(model, CapaBoostConfig("lora", targets=["0"]))


@pytest.mark.parametrize("preset", ["lora", "padapter", "linear", "full", "bitfit"])
def test_a_quantized_head_is_refused_before_anything_changes(preset):
    model = fresh_base()
    model.head.weight = nn.Parameter(model.head.weight.detach().to(torch.int8), requires_grad=False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(UserError, match=r"head\.weight is to train, but is torch\.int8"):
        inject(model, preset, PLAN)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert type(model.first) is nn.Linear


class Past(nn.Module):
    """Reads the weight of one of its layers, and runs others only sometimes."""

    def __init__(self, checkpointed=False):
        super().__init__()
        torch.manual_seed(0)
        self.read, self.called, self.checkpointed = nn.Linear(8, 8), nn.Linear(8, 8), checkpointed
        self.experts, self.turn = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), 0

    def forward(self, x):
        x = nn.functional.linear(x, self.read.weight, self.read.bias)
        x = checkpoint(self.called, x, use_reentrant=True) if self.checkpointed else self.called(x)
        self.turn += 1
        return {"hidden": self.experts[self.turn % 3](x)}


ROWS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def warnings_of(model, passes=20, run=lambda model: model(ROWS)):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(passes):
            run(model)
    return [str(one.message) for one in caught if issubclass(one.category, NoEffectWarning)]


@pytest.mark.parametrize("preset", ["lora", "capaboost-lora", "padapter", "ssf"])
def test_additions_without_an_effect_are_told_once(preset):
    dead, some, alive = (("read",), ("read", "called", "experts.0"), ("called", "experts.1"))
    for paths, expected in ((dead, 1), (some, 1), (alive, 0)):
        model = inject(Past(), preset, Plan(tuple(map(Target, paths))))
        found = warnings_of(model)
        assert [("such as read" in one, "\n" in one) for one in found] == [(True, False)] * expected
        assert len(model._forward_hooks) == len(model._forward_pre_hooks)  # those of the tied weights
        if paths != alive:
            with pytest.raises(UserError, match=r"Past bypasses an adapted layer, such as read"):
                check_alive(model.train(), ROWS)
            assert all(module.training for module in model.modules())


def test_nothing_is_told_of_what_cannot_be_known():
    def watched(model=None, **settings):
        return inject(Past(**settings) if model is None else model, "lora", Plan((Target("read"), Target("called"))))

    def without_gradients(model):
        with torch.no_grad():
            model(ROWS)

    x = ROWS.clone().requires_grad_()  # without it reentrant checkpointing does give no gradient
    assert warnings_of(watched(checkpointed=True), run=lambda model: model(x)) == []
    assert warnings_of(watched(), run=without_gradients) == []
    assert (
        warnings_of(
            watched(), run=lambda model: torch.jit.trace(model, ROWS, strict=False, check_trace=False), passes=2
        )
        == []
    )
    assert warnings_of(torch.compile(watched(), backend="eager", fullgraph=True), passes=2) == []
    assert len(warnings_of(copy.deepcopy(watched()))) == 1
    assert warnings_of(unload(watched())) == []


def test_layers_in_a_list_that_is_no_module_list_are_told():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    layers = list(model)
    model.forward = lambda x: layers[1](layers[0](x))
    inject(model, CapaBoostConfig("lora", targets=["0", "1"]))
    assert len(warnings_of(model)) == 1


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_that_cuts_the_additions_off_is_told():
    """Its parts get no gradient if their input needs none, and what follows trains on."""
    model = inject(Past(checkpointed=True), "lora", Plan((Target("called"),), head=("experts",)))
    assert len(warnings_of(model, passes=1)) == 1
    x = ROWS.clone().requires_grad_()
    again = inject(Past(checkpointed=True), "lora", Plan((Target("called"),), head=("experts",)))
    assert warnings_of(again, run=lambda model: model(x)["hidden"].sum().backward()) == []
    assert all(parameter.grad is not None for parameter in again.called.own_parameters().values())


class Residual(nn.Module):
    """Ten layers, each added to its input, and one that nothing uses."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(10))
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_a_node_of_the_graph_is_looked_at_once_however_many_ways_lead_to_it(monkeypatch):
    """Each residual connection doubles the ways: without this, a deep model would take years."""
    model = inject(Residual(), dict(method="lora", r=2), Plan((Target("layers.0"), Target("unused"))))
    outputs, nodes, edges = model(torch.ones(1, 4)), [], liveness._edges
    monkeypatch.setattr(liveness, "_edges", lambda node, *rest: nodes.append(node) or edges(node, *rest))
    assert dead_layers(model, outputs) == ["unused"]
    assert 20 < len(nodes) < 60  # and not 2**10


def test_a_vision_model_of_transformers_is_looked_through_with_an_image():
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes))
    model.unused = nn.Linear(16, 16)
    with pytest.raises(UserError, match="adapted layer, such as unused"):
        inject(model, dict(method="lora", r=2, targets=["unused"]))
