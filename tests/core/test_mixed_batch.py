"""Rows of a batch take different adapters, each as in a pass of its own."""

import itertools
import threading
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import capaboost_vision
from capaboost_core import (
    CapaBoostConfig,
    UserError,
    delete_adapter,
    disable,
    inject,
    load_adapter,
    merge,
    mixed_batch,
    save_adapter,
    set_adapter,
    trainable_parameters,
    unload,
    unmerge,
)
from tests.compatibility.models import drawn
from tests.core.named_case import net, own, run, state
from tests.core.toy_model import X
from tests.vision.models import create, image

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
ROWS = ["tied", "lora", None, "n:m masks", "bottlenecks", "tied", "default", "all layers"]


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


def test_no_state_dict_is_made_of_a_mixed_batch(tmp_path):
    model = net(tmp_path, "b")
    before = list(model.state_dict())
    with mixed_batch(model.eval(), ["b", "default"]), pytest.raises(UserError, match="leave it first"):
        model.state_dict()
    assert list(model.state_dict()) == before


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


REFUSED_ROWS = {  # with the rows of the input
    "b": (5, "list a name for each row"),
    (): (5, "list a name for each row"),
    ("b", "x"): (5, "no adapter 'x'"),
    ("bb", "b"): (5, "2 adapters for a batch of 5 rows"),
    ("b", "bb"): (4, "2 adapters for a batch of 4 rows"),  # not as two windows of each
    ("b",) * 6: (5, "6 adapters for a batch of 5 rows"),
}


@pytest.mark.parametrize("rows", REFUSED_ROWS)
def test_wrong_rows_are_refused(rows, tmp_path):
    model = net(tmp_path, "b", "bb")
    before, (inputs, message) = state(model), REFUSED_ROWS[rows]
    with pytest.raises(UserError, match=message), mixed_batch(model, rows):
        model(X[:inputs])
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
        for change in (merge, unmerge, unload, lambda model: save_adapter(model, tmp_path / "x")):
            with pytest.raises(UserError, match="mixed_batch context"):
                change(model)
    assert len(errors) == 1
    assert "thread" in errors[0]
    with disable(model):
        assert torch.allclose(model(X)[1:3], disabled[1:3])
    with pytest.raises(UserError, match=r"model\.eval"), mixed_batch(model.train(), ["b"] * 5):
        pass
