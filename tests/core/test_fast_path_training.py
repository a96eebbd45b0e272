"""The fused step in all that a training run does with it: checkpointing, accumulation, copies, compilation, DDP."""

import copy
import shutil

import pytest
import torch
import torch.distributed as dist
from torch._inductor import config as inductor
from torch.nn.parallel import DistributedDataParallel

from capaboost_core import trainable_parameters
from tests.commands import start_server
from tests.core.fast_path_case import DOUBLE, DROPOUT, OUT, adapted, assert_near, batch, lora_linear


def gradients(model, *batches):
    for x in batches:
        torch.manual_seed(2)
        model(x.requires_grad_()).square().sum().backward()
    return {name: p.grad for name, p in trainable_parameters(model).items()}


@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(reentrant, dropout):
    expected = gradients(adapted(dropout=dropout), batch())
    torch.testing.assert_close(gradients(adapted(reentrant, dropout=dropout), batch()), expected, rtol=1e-10, atol=0)


def test_two_half_batches_accumulate_to_the_whole():
    halves = [half.clone() for half in batch().chunk(2)]
    torch.testing.assert_close(gradients(adapted(), *halves), gradients(adapted(), batch()), rtol=1e-10, atol=1e-12)


def test_a_deepcopy_is_independent():
    model = adapted()
    twin, before = copy.deepcopy(model), model(batch())
    assert torch.equal(twin(batch()), before)
    gradients(twin, batch())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(batch()), before)


def train(model, call, lowered=None):
    """How far 5 steps through `call` move each parameter; within autocast if a lower precision is given."""
    parameters = trainable_parameters(model)
    before = {name: p.detach().double() for name, p in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    x = batch(DOUBLE if lowered is None else torch.float32).requires_grad_()
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", lowered, enabled=lowered is not None):
            out = call(x)
        out.double().square().mean().backward()
        optimizer.step()
    return {name: p.detach().double() - before[name] for name, p in parameters.items()}


def assert_compiled_trains_the_same(model, backend, tolerance, lowered=None):
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True), inductor.patch(compile_threads=1):
        moved = train(twin, torch.compile(twin, fullgraph=True, backend=backend), lowered)
    for name, expected in train(model, model, lowered).items():
        assert_near(moved[name], expected, tolerance)


@pytest.mark.parametrize(("num_tied", "density"), [(1, 1.0), (1, 0.5), (2, 0.5), (8, 0.5)])
def test_compiled_whole_and_once_it_trains_the_same(num_tied, density):
    assert_compiled_trains_the_same(adapted(num_tied=num_tied, density=density), "aot_eager", 1e-8)


SLICES = {"whole": ((0, OUT),), "middle": ((8, 16),), "v before q": ((16, 24), (0, 8)), "unequal": ((0, 4), (4, 20))}


@pytest.mark.parametrize("slices", SLICES.values(), ids=SLICES)
def test_compiled_it_adds_to_the_same_columns(slices):
    assert_compiled_trains_the_same(lora_linear(slices), "aot_eager", 1e-8)


def test_compiled_within_autocast():
    model = adapted(dtype=torch.float32)
    assert_compiled_trains_the_same(model, "aot_eager", 0.02, torch.bfloat16)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler, such as g++")
@pytest.mark.long
def test_compiled_to_machine_code():
    assert_compiled_trains_the_same(lora_linear(), "inductor", 1e-8)


def one_process(rank, folder):
    """Half of the batch in one of two processes, started by the test below."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(adapted())
    model(batch().chunk(2)[rank]).square().mean().backward()
    torch.save({name: p.grad for name, p in trainable_parameters(model.module).items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    start_server()
    torch.multiprocessing.start_processes(one_process, (str(tmp_path),), 2, start_method="forkserver")
    model = adapted()
    model(batch()).square().mean().backward()
    expected = {name: p.grad for name, p in trainable_parameters(model).items()}
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-10, atol=1e-12)
