"""The methods of peft against peft's own models, and what this package adds to them."""

import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from capaboost.report.cost import adapter_file_bytes
from capaboost.report.rank import model_ranks
from capaboost_core import (
    UserError,
    disable,
    load_adapter,
    merge,
    save_adapter,
    save_peft,
    trainable_parameters,
    unload,
)
from capaboost_core.account import account_of
from capaboost_core.injection import adapted_layers, own_parameters
from tests.compatibility.models import base, drawn, logits
from tests.methods.cases import KINDS, PEFT, SHAPES, R, adapted, out, put_in, settings, trained

# As a user of peft alone would write them.
STOCK = {
    "adalora": lambda **k: peft.AdaLoraConfig(init_r=6, target_r=R, lora_alpha=16, total_step=9, **k),
    "dora": lambda **k: peft.LoraConfig(r=R, lora_alpha=R, use_dora=True, **k),
    "rslora": lambda **k: peft.LoraConfig(r=R, lora_alpha=16, use_rslora=True, **k),
    "pissa": lambda **k: peft.LoraConfig(r=R, lora_alpha=R, init_lora_weights="pissa", **k),
    "vera": lambda **k: peft.VeraConfig(r=R, **k),
    "loha": lambda **k: peft.LoHaConfig(r=R, alpha=R, **k),
    "lokr": lambda **k: peft.LoKrConfig(r=R, alpha=R, **k),
    "ia3": lambda **k: peft.IA3Config(feedforward_modules=r".*(mlp.fc2|\d.output.dense)", **k),
    "randlora": lambda **k: peft.RandLoraConfig(r=R, randlora_alpha=640, **k),
    "shira": lambda **k: peft.ShiraConfig(r=R, **k),
}
each_method = pytest.mark.parametrize("method", STOCK)
each_kind = pytest.mark.parametrize("kind", KINDS)


def stock_like(ours, method: str, kind: str) -> tuple[torch.nn.Module, peft.PeftModel]:
    """A base model with the same adapter by peft alone, in double precision."""
    model, paths = base(kind), [layer.path for layer in adapted_layers(ours)]
    kept = {path: model.get_submodule(path).weight.detach().double().clone() for path in paths}
    stock = peft.get_peft_model(model, STOCK[method](target_modules=paths)).double()
    for layer in adapted_layers(ours):
        theirs = model.get_submodule(layer.path)
        absent, unknown = theirs.load_state_dict(layer.peft.state_dict(), strict=False)
        assert not unknown
        assert all(name.startswith(("base_layer.", "vera_", "randlora_")) for name in absent), absent
        if method == "shira":
            theirs.shira_indices["default"] = torch.stack([layer.peft.places // layer.in_features,
                                                           layer.peft.places % layer.in_features])  # fmt: skip
        if method == "pissa":
            theirs.base_layer.weight.data = kept[layer.path] - layer.removed["B"].data @ layer.removed["A"].data
    return model, stock


@each_kind
@each_method
def test_the_same_weights_give_what_peft_gives(method, kind):
    """Outputs, gradients and merged weights; the random projections of VeRA and RandLoRA are drawn by each alone."""
    ours = trained(method, kind).double()
    model, stock = stock_like(ours, method, kind)
    for one in (ours, model):
        logits(one).square().sum().backward()
    exact = dict(atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(out(ours), out(model), **exact)
    assert (out(ours) - out(base(kind).double())).abs().max() > 1e-3
    for layer in adapted_layers(ours):
        theirs = dict(model.get_submodule(layer.path).named_parameters())
        for name, parameter in layer.peft.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, theirs[name].grad, **exact)
    plain, merged = unload(ours), stock.merge_and_unload()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], weight, **exact)


@each_kind
@each_method
def test_the_base_keeps_its_names_and_its_weights(method, kind):
    model, plain = adapted(method, kind), base(kind).state_dict()
    held = model.state_dict()
    assert {name for name in plain if name in held} == plain.keys()
    own = {f"{layer.path}.{name}" for layer in adapted_layers(model) for name in layer.own_parameters()}
    assert held.keys() - plain.keys() == own
    merge(model)
    unload(model)
    dropped = unload(trained(method, kind), merge=False).state_dict()
    for name, value in plain.items():
        assert torch.equal(held[name], value), name
        assert torch.equal(dropped[name], value), name


@each_method
def test_an_unadapted_start_in_double_precision(method):
    """Where a method starts as its base, also in the precision in which rounding would show."""
    model = put_in(base("vit").double(), settings(method))
    torch.testing.assert_close(out(model), out(base("vit").double()), atol=1e-12, rtol=0)


def test_pissa_trains_the_principal_part_of_each_weight_and_takes_it_from_the_frozen_rest():
    for layer in adapted_layers(adapted("pissa", "vit")):
        u, s, v = np.linalg.svd(layer.weight.detach().double().numpy())
        best = (u[:, :R] * s[:R]) @ v[:R]
        a, b = (getattr(layer.peft, name)["default"].weight.detach() for name in ("lora_A", "lora_B"))
        np.testing.assert_allclose((b @ a).numpy(), best, atol=1e-5)
        np.testing.assert_allclose((layer.removed["B"] @ layer.removed["A"]).detach().numpy(), best, atol=1e-5)
        assert not any(parameter.requires_grad for parameter in layer.removed.values())


def test_shira_draws_places_for_each_layer():
    layers = adapted_layers(adapted("shira", "bert"))
    places = [frozenset(layer.peft.places.tolist()) for layer in layers]
    assert len({*places}) == len(layers) == 4
    assert {len(of_layer) for of_layer in places} == {R * sum(SHAPES["bert"][0])}
    again = adapted_layers(adapted("shira", "bert", seed=1))
    assert not any(torch.equal(a.peft.places, b.peft.places) for a, b in zip(layers, again, strict=True))


def test_ia3_scales_what_the_second_feed_forward_matrix_takes():
    model = adapted("ia3", "bert")
    taken = {layer.path: layer.peft.is_feedforward for layer in adapted_layers(model)}
    assert {path.rpartition("layer.")[2][2:] for path, of_input in taken.items() if of_input} == {"output.dense"}
    assert {path.rpartition(".")[2] for path, of_input in taken.items() if not of_input} == {"key", "value"}


IN, OUT = SHAPES["vit"][0]
LORA = R * (IN + OUT)
PRODUCTS = {  # multiply-adds for each row, and of weights alone for each call
    "adalora": (6 * (IN + OUT), 0),
    "dora": (LORA, IN * IN * R + IN * R * OUT),  # the increment itself, for the norms
    "rslora": (LORA, 0),
    "pissa": (2 * LORA, 0),
    "vera": (LORA, 0),
    "loha": (IN * OUT, 2 * OUT * R * IN),
    "lokr": (IN * OUT, 0),  # a Kronecker product has no sums
    "ia3": (0, 0),
    "randlora": (IN // R * LORA, 0),
    "shira": (0, 0),  # the sum of weights is multiplied once
}


@each_method
def test_products_are_those_of_the_formula(method):
    products = adapted_layers(adapted(method, "vit"))[0].macs(True)
    for per_call, expected in zip((False, True), PRODUCTS[method], strict=True):
        assert sum(product.executed for product in products if product.per_call is per_call) == expected


@each_method
def test_the_size_of_the_file_is_known_before_it_is_written(method, tmp_path):
    model = adapted(method, "vit")
    save_adapter(model, tmp_path)
    assert adapter_file_bytes(account_of(model).everything) == (tmp_path / "adapter.safetensors").stat().st_size
    frozen = own_parameters(adapted_layers(model)).keys() - trainable_parameters(model).keys()
    assert {name.rpartition("qkv.")[2] for name in frozen} == {
        "adalora": {"peft.ranknum.default"}, "pissa": {"removed.A", "removed.B"}
    }.get(method, set())  # fmt: skip


@each_method
def test_an_adapter_of_a_single_precision_base_loads_into_a_half_precision_one(method, tmp_path):
    """The frozen projections are drawn in single precision whatever the base has, and what trains stays in it."""
    whole = trained(method, "vit")
    save_adapter(whole, tmp_path)
    half = load_adapter(base("vit").bfloat16(), tmp_path).eval()
    own = own_parameters(adapted_layers(half))
    assert {parameter.dtype for parameter in own.values()} == {torch.float32}
    assert all(torch.equal(parameter, own_parameters(adapted_layers(whole))[name]) for name, parameter in own.items())
    scale = out(whole).abs().max()
    for model in (half, merge(half)):
        assert out(model).dtype == torch.bfloat16
        assert (out(model).float() - out(whole)).abs().max() < 0.1 * scale


def test_a_projection_that_differs_is_refused(tmp_path):
    """As it may where another version of torch draws other numbers from the seed."""
    save_adapter(trained("vera", "vit"), tmp_path)
    model = adapted("vera", "vit")
    adapted_layers(model)[0].peft.vera_A["default"].mul_(2)
    with pytest.raises(UserError, match="projections made from its seed"):
        load_adapter(model, tmp_path)


def gpt2():
    sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=50, pad_token_id=0)
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(GPT2Config(num_labels=3, **sizes)).eval()


NO_CONV1D = ("loha", "lokr", "shira")


@pytest.mark.parametrize("method", [name for name in STOCK if name not in NO_CONV1D])
def test_gpt2s_transposed_layers_are_adapted_and_merged(method):
    model = put_in(gpt2(), settings(method)).eval()
    start = out(gpt2())
    torch.testing.assert_close(out(model), start, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.add_(drawn(name, tuple(parameter.shape), 0.1))
    trained_out = out(model)
    assert (trained_out - start).abs().max() > 1e-3
    torch.testing.assert_close(out(merge(model)), trained_out, atol=1e-4, rtol=1e-4)


REFUSED = {
    **{f"{method} on GPT-2": (method, gpt2, {}, rf"peft cannot put {method} there: .*Conv1D") for method in NO_CONV1D},
    "more values than entries": ("shira", lambda: base("bert"), {"r": 9}, "shira there: .*rank 9"),
    "a rank that cannot fall": ("adalora", lambda: base("vit"), {"init_r": 4}, "init_r is 4; ranks fall"),
    "no phase between": ("adalora", lambda: base("vit"), {"initial_share": 0.6}, "final_share"),
    "a setting of another method": ("ia3", lambda: base("vit"), {"r": 4}, "r is 4; it means nothing to method ia3"),
    "no such layer": ("dora", lambda: base("vit"), {"targets": ["attn.q"]}, "no linear layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_cannot_do_is_refused_in_a_line_before_anything_changes(case):
    method, build, changes, hint = REFUSED[case]
    model = build()
    with pytest.raises(UserError, match=hint) as refusal:
        put_in(model, settings(method).replace(**changes))
    assert "\n" not in str(refusal.value)
    assert not hasattr(model, "capaboost")
    fresh = build().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_peft_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("capaboost_core.extras.is_installed", lambda module: module != "peft")
    with pytest.raises(UserError, match=r"need peft, which is not installed; type pip install 'peft>=0.21,<0.22'"):
        adapted("dora", "vit")


def test_without_peft_all_settings_can_be_read():
    """A method's settings need no peft, and those of a file are compared with the settings of every method."""
    script = (
        "import sys; sys.modules['peft'] = None; from capaboost_core import CapaBoostConfig as C;"
        "assert C.from_record({'method': 'lora', 'r': 4}).r == C.from_record({'method': 'shira', 'r': 4}).r == 4"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("method", sorted(STOCK.keys() - {"adalora", "rslora", "pissa"}))
def test_ranks_and_peft_files_are_of_loras_alone(method, tmp_path):
    with pytest.raises(UserError, match=method):
        model_ranks(adapted(method, "vit"))
    with pytest.raises(UserError, match="no LoRA"):
        save_peft(adapted(method, "vit"), tmp_path / "out")


@each_method
def test_the_same_trains_on_any_device(method):
    on_meta = put_in(base("vit").to("meta"), settings(method))
    assert trainable_parameters(on_meta).keys() == trainable_parameters(adapted(method, "vit")).keys()
    assert all(parameter.is_meta for parameter in on_meta.parameters())


def test_the_table_of_cases_is_whole():
    assert PEFT.keys() == STOCK.keys()


def test_disabled_within_merging_and_back():
    model = trained("dora", "vit")
    before = out(model)
    with disable(merge(model)):
        assert torch.equal(out(model), out(base("vit")))
    torch.testing.assert_close(out(model), before, atol=1e-4, rtol=1e-4)
