"""Kernels of a step are counted as they would be launched, and an adapter of ours launches no more than peft's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import launches
from benchmarks import tables as make_tables
from benchmarks.command import run_command
from benchmarks.fake_cuda import autocast, backward, fake_cuda
from benchmarks.launches import Count, count_step
from benchmarks.models import TINY_TEXT, WORKLOADS, roberta, vit
from benchmarks.peers import build_peer, find_spec

needs_peft = pytest.mark.skipif(not find_spec("peft"), reason="the extra [peft] is not installed")


def counted(work):
    with fake_cuda(), Count() as count:
        work()
    return count


def on_gpu(*shape, **of):
    return torch.zeros(shape, device="cuda", **of)


BF16 = {"dtype": torch.bfloat16}
OPERATORS = {  # made before: launches, bytes, multiply-adds
    "a view": (lambda x: x.view(-1).t().unsqueeze(0)[0], 0, 0, 0),
    "an allocation": (torch.empty_like, 0, 0, 0),
    "a sum": (lambda x: x + x, 1, 3 * 24 * 4, 0),
    "in place": (lambda x: x.add_(1), 1, 2 * 24 * 4, 0),
    "set": (lambda x: x.fill_(1), 1, 24 * 4, 0),
    "copied to another type": (lambda x: x.bfloat16(), 1, 24 * (4 + 2), 0),
    "expanded": (lambda x: x[:1].expand(4, 6).sum(), 1, 6 * 4 + 4, 0),
    "a product": (lambda x: x @ x.T, 1, (24 + 24 + 16) * 4, 4 * 6 * 4),
    "a product added in place": (lambda x: x[:, :4].addmm_(x, x.T), 1, (2 * 16 + 2 * 24) * 4, 4 * 6 * 4),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_counted_by_what_it_reads_writes_and_multiplies(name):
    work, *expected = OPERATORS[name]
    with fake_cuda():
        x = on_gpu(4, 6)
        with Count() as count:
            work(x)
    assert [count.launches, count.bytes_moved, count.multiply_adds] == expected


def test_a_kernel_takes_the_longer_of_memory_and_arithmetic():
    with fake_cuda():
        x, tall, wide = on_gpu(1000), on_gpu(4096, 4096, **BF16), on_gpu(4096, 4096, **BF16)
        with Count() as count:
            x + x
            tall @ wide
    expected = 12_000 / launches.BANDWIDTH + 2 * 4096**3 / launches.PEAK
    assert count.device_seconds == pytest.approx(expected)
    assert count.figures()["bound"] == "arithmetic"


class Forked(nn.Module):
    """A graph whose branches meet again, with a broadcast bias, a frozen layer and a parameter without a gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.frozen.requires_grad_(False)
        self.scale, self.unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))

    def forward(self, x):
        y = self.first(x)
        return self.last(self.frozen(y).relu() * self.scale + y)


@pytest.mark.parametrize("make", [Forked, lambda: adapted("tiny-vit", "capaboost-d2")], ids=["forked", "adapted"])
def test_a_backward_pass_node_by_node_is_that_of_the_engine(make):
    torch.manual_seed(0)
    model = make().train()
    x = torch.randn(2, 4) if isinstance(model, Forked) else WORKLOADS["tiny-vit"].inputs(2)
    model(x).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    backward(model(x).square().sum())
    for name, parameter in model.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def adapted(model, peer):
    workload = WORKLOADS[model]
    return build_peer(peer, workload.create(), workload, rank=8).model


def test_attention_on_a_gpu_is_one_kernel():
    with fake_cuda():
        q = on_gpu(2, 2, 5, 16)
        with autocast(torch.bfloat16):
            q = F.linear(q, on_gpu(16, 16))
        with Count() as count:
            F.scaled_dot_product_attention(q, q, q)
    assert count.launches == 1
    assert count.multiply_adds == 2 * 2 * 2 * 5 * 5 * 16


TIED = ("capaboost-d2", "capaboost-d8")
NARROW = {  # of twelve blocks: their width changes no count
    "vit": vit("vit_tiny_patch16_224", 32, img_size=32, embed_dim=32, depth=12, num_heads=2),
    "roberta": roberta(16, **TINY_TEXT | {"num_hidden_layers": 12}),
}


@needs_peft
@pytest.mark.parametrize("model", NARROW)
def test_an_eager_step_launches_at_most_as_many_kernels_as_pefts(model):
    workload = NARROW[model]
    base = workload.create()
    names = ("capaboost-d1", "capaboost-d2", "peft")
    steps = {name: count_step(build_peer(name, base, workload, rank=8).model, workload, 2).launches for name in names}
    assert max(steps.values()) == steps["peft"]


def test_more_copies_are_no_more_launches():
    two, eight = (count_step(adapted("tiny-vit", name), WORKLOADS["tiny-vit"], 2) for name in TIED)
    assert two.launches == eight.launches
    assert two.multiply_adds < eight.multiply_adds


def test_the_command_leaves_a_complete_result(tmp_path):
    arguments = ["--quick", "--peers", "floor", "capaboost-d2", "--results", str(tmp_path)]
    assert run_command(launches.main, arguments) == 0
    (result,) = make_tables.read_results(tmp_path).values()
    assert result["settings"] == {"model": "tiny-vit", "batch": 2, "rank": 8, "precision": "bf16", "repeats": 1}
    floor, ours = result["peers"].values()
    for figure in ("median", "bytes_moved", "launch_ms", "device_ms"):
        assert 0 < floor[figure] < ours[figure]
    assert {floor["bound"], ours["bound"]} == {"launches"}  # of a tiny model
