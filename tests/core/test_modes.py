"""Adapted, merged, disabled: every mode knows of the others, and the frozen weights stay bit for bit."""

import copy
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh

from capaboost_core import UserError, disable, inject, merge, merged, parameter_counts, unload, unmerge
from tests.core.toy_model import PLAN, Net, X, adapted, fresh_base, randomise


def lora():
    return randomise(adapted(alpha=8)).eval()


def as_base(model):
    """What the model's frozen weights and its head compute alone."""
    plain = Net()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    return plain(X)


def copied(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(model, state):
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_merged_it_computes_the_same_in_one_product():
    model = lora()
    out = model(X)
    merge(merge(model))
    assert_near(model(X), out)
    assert torch.equal(model.first(X), nn.functional.linear(X, model.first.merged_weight()[0], model.first.bias))
    unmerge(unmerge(model))
    assert torch.equal(model(X), out)


def test_merged_holds_within_its_context_only():
    model = lora()
    out, state = model(X), copied(model)
    with merged(model), merged(model) as inner:
        assert inner.first.merged
        assert_near(model(X), out)
    assert not model.first.merged
    assert_same_state(model, state)
    with pytest.raises(RuntimeError), merged(model):
        model(X[0, :1])  # one value where the first layer takes 16
    assert not model.first.merged
    with merged(merge(model)):
        pass
    assert model.first.merged  # as it was before
    adapter = randomise(adapted("padapter")).eval()
    out = adapter(X)
    with merged(adapter):
        assert torch.equal(adapter(X), out)


@pytest.mark.parametrize("leave", [merge, unload])
def test_an_adapter_says_that_it_cannot_be_merged(leave):
    with pytest.raises(UserError, match="nonlinearity"):
        leave(adapted("padapter"))


def test_unloaded_it_is_a_plain_model_with_the_sums():
    model, plain = lora(), Net()
    out, keys = model(X), plain.state_dict().keys()
    unload(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model.state_dict().keys() == keys
    plain.load_state_dict(model.state_dict())
    assert_near(plain(X), out)
    assert torch.equal(model(X), plain(X))
    assert not model.first.weight.requires_grad
    again = inject(model, {"r": 2, "targets": ["second"]})
    assert torch.equal(again(X), plain(X))


@pytest.mark.hard_case(11)
@pytest.mark.parametrize("merging", [merged, lambda model: nullcontext(merge(model))], ids=["merged", "merge"])
def test_disabled_it_is_the_base_merged_or_not(merging):
    model = lora()
    out, base = model(X), as_base(lora())
    with merging(model):
        with disable(model), disable(model):
            assert torch.equal(model(X), base)
            with merged(model):
                assert torch.equal(model(X), base)
        assert model.first.merged
        assert_near(model(X), out)
    assert torch.equal(unmerge(model)(X), out)


@pytest.mark.hard_case(12)
def test_a_training_step_while_merged_is_refused_but_gradients_of_the_input_are_not():
    # In double precision: sums of a thousand float32 products differ by the number of threads.
    model, x = merge(lora().double()), X.double().requires_grad_()
    model(x).sum().backward()
    gradient = x.grad.clone()
    x.grad = None
    unmerge(model)(x).sum().backward()
    assert_near(gradient, x.grad)
    merge(model.float()).train()
    with pytest.raises(UserError, match=r"first is merged and cannot be trained; call unmerge\(model\)"):
        model(X)
    with torch.no_grad():
        model(X)
    for layer in (model.first, model.second):
        for parameter in layer.own_parameters().values():
            parameter.requires_grad_(False)
    model(X).sum().backward()  # what is left to train is the head
    assert model.head.weight.grad is not None


def test_merged_within_inference_mode_it_still_gives_gradients_to_the_input():
    model, x = lora(), X.clone().requires_grad_()
    with torch.inference_mode():
        merge(model)
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.hard_case(13)
def test_threads_may_merge_and_disable_at_the_same_time():
    model = lora()
    out, state, base = model(X), copied(model), as_base(lora())

    def evaluate(context, expected):
        for _ in range(60):
            with torch.no_grad(), context(model):
                torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)

    for context, expected in ((merged, out), (disable, base)):
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(evaluate, context, expected) for _ in range(4)]:
                done.result()
    with ThreadPoolExecutor(4) as threads:
        of_base = [threads.submit(evaluate, disable, base) for _ in range(2)]
        for _ in range(200):
            with merged(model):
                pass
        for done in of_base:
            done.result()
    assert_same_state(model, state)
    assert model.first.enabled
    assert not model.first.merged
    assert torch.equal(model(X), out)


@pytest.mark.hard_case(14)
def test_a_state_dict_saved_while_merged_is_that_of_the_unmerged_model():
    model, fresh = lora(), adapted(alpha=8).eval()
    out, state = model(X), copied(model)
    assert_same_state(merge(model), state)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    assert torch.equal(fresh(X), out)


@pytest.mark.hard_case(15)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("of_base", [False, True])
def test_a_state_dict_loaded_into_a_merged_model_counts_at_once_and_after_unmerge(of_base, assign):
    torch.manual_seed(5)
    other, model = randomise(inject_other()), merge(lora())
    state = {k: v for k, v in copied(other).items() if not of_base or "lora_" not in k}
    if of_base:
        other.load_state_dict({k: v for k, v in model.state_dict().items() if "lora_" in k}, strict=False)
    model.load_state_dict(copy.deepcopy(state), assign=assign)
    expected = other.eval()(X)
    assert_near(model(X), expected)
    assert_same_state(unmerge(model), copied(other))
    assert torch.equal(model(X), expected)


def inject_other():
    model = adapted(alpha=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: torch.load(io.BytesIO(saved(model)), weights_only=False),
}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


@pytest.mark.parametrize("copy_of", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("merging", [False, True])
def test_a_copy_of_a_merged_model_is_merged_and_can_be_unmerged(merging, copy_of):
    model = lora()
    out = model(X)
    if merging:
        with merged(model):
            twin = copy_of(model)
    else:
        twin = copy_of(merge(model))
    assert twin.first.merged
    assert_near(twin(X), out)
    assert torch.equal(unmerge(twin)(X), out)
    twin.load_state_dict(adapted(alpha=8).state_dict())  # its hooks are its own
    assert torch.equal(unmerge(model)(X), out)


@pytest.mark.hard_case(9)
def test_counts_are_the_same_merged_and_with_a_frozen_head():
    model = lora()
    counts = parameter_counts(model)
    assert parameter_counts(merge(model)) == counts
    assert parameter_counts(unmerge(model)) == counts
    model.head.requires_grad_(False)
    assert parameter_counts(model) == counts
    assert 0 < counts.percent < 100


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.hard_case("messages")
def test_sharded_weights_are_not_merged(one_process):
    model = lora()
    out = model(X)
    for layer in (model.first, model.second):
        fully_shard(layer, mesh=one_process)
    fully_shard(model, mesh=one_process)
    for leave in (merge, unload):
        with pytest.raises(UserError, match="sharded over processes and cannot be merged"):
            leave(model)
    with torch.no_grad(), merged(model):  # what cannot be merged stays as it is
        assert torch.equal(model(X), out)


@pytest.mark.parametrize("method", ["lora", "capaboost-lora", "padapter", "ssf"])
def test_a_context_of_one_thread_disables_nothing_in_another(method):
    model = randomise(inject(fresh_base(), method, PLAN)).eval()
    entered, leave = threading.Event(), threading.Event()
    out = model(X).detach()

    def evaluate():
        with torch.no_grad(), disable(model), disable(model):
            base = model(X)
            entered.set()
            leave.wait(60)
            return base, model(X)

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(evaluate)
        try:
            assert entered.wait(60)
            assert torch.equal(model(X), out)
            with disable(model):
                here = model(X)
            assert torch.equal(model(X), out)
        finally:
            leave.set()
        first, last = done.result()
    assert torch.equal(first, last)
    assert torch.equal(first, here)
    assert not torch.equal(first, out)
    assert torch.equal(model(X), out)


def test_a_context_that_another_thread_leaves_ends_where_it_began():
    model = lora()
    out, context = model(X), disable(model)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(context.__enter__).result()
        context.__exit__(None, None, None)
        assert not threads.submit(lambda: model.first.disabled).result()
    assert torch.equal(model(X), out)
    assert not model.first.contexts


def test_replicas_in_threads_of_their_own_are_disabled_as_their_model_is():
    model = lora()
    with ThreadPoolExecutor(1) as threads:
        for context, expected in ((disable(model), True), (nullcontext(), False)):
            with context:
                replica = model.first._replicate_for_data_parallel()
                assert threads.submit(lambda one=replica: one.disabled).result() == expected
                assert not threads.submit(lambda: model.first.disabled).result()
