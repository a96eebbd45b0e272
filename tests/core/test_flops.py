"""Multiply-adds of small nets against numbers worked out by hand, and against torch's own counter."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from capaboost.report.counting import dispatched_products
from capaboost.report.flops import count_added, count_flops
from capaboost_core import CapaBoostConfig, Plan, Target, UserError, disable, inject, merge
from capaboost_core.injection import adapted_layers

ROWS, IN, OUT, R = 6, 16, 24, 4
TOKENS = (2, 3, IN)  # two examples of three tokens: six rows


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Written(nn.Module):
    """Products in the ways that layers write them."""

    def forward(self, x):
        scores = torch.einsum("b i d, b j d -> b i j", x, x)
        return scores @ x, torch.addmm(x[0, :, :3], x[0], x[1].T), torch.baddbmm(scores, x, x.mT), x[0] @ x[1, 0]


BASES = {
    "linear": (lambda: nn.Linear(IN, OUT), [TOKENS], ROWS * IN * OUT),
    "conv": (lambda: nn.Conv2d(3, 8, 4, stride=4), [(2, 3, 8, 12)], (2 * 8 * 2 * 3) * (3 * 4 * 4)),
    "groups": (lambda: nn.Conv1d(4, 8, 3, groups=2), [(2, 4, 7)], (2 * 8 * 5) * (2 * 3)),
    "attention": (Attention, [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6)], 2 * 4 * 5 * 7 * (8 + 6)),
    "written": (Written, [TOKENS], (2 * 3 * 3 * IN) * 2 + 3 * 3 * IN + 2 * 3 * 3 * IN + 3 * IN),
}


@pytest.mark.parametrize(("create", "shapes", "expected"), BASES.values(), ids=BASES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_forward_by_hand(create, shapes, expected, device):
    with torch.device(device):
        counts = count_flops(create(), tuple(torch.ones(shape) for shape in shapes))
    assert counts.executed == counts.effective == expected
    assert counts.unsupported == counts.negligible == {}


def test_what_is_not_counted_is_named():
    net = nn.Sequential(nn.LayerNorm(IN), nn.ReLU(), nn.Dropout(0.5), nn.GELU(), nn.Softmax(-1), nn.GELU())
    names = {"aten::layer_norm": 1, "aten::relu": 1, "aten::gelu": 2, "aten::softmax": 1}
    assert count_flops(net.eval(), torch.ones(TOKENS)).negligible == names
    counts = count_flops(net.train(), torch.ones(TOKENS), backward=True)
    assert counts.executed == 0
    assert names | {"aten::dropout": 1} == {name: counts.negligible[name] for name in [*names, "aten::dropout"]}
    assert {"aten::gelu_backward", "aten::native_layer_norm_backward"} <= counts.negligible.keys()
    assert counts.unsupported == {}


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x @ x.mT

    @staticmethod
    def backward(ctx, grad):
        return grad


class Hidden(nn.Module):
    """Products that no handle knows, and two in a function that a trace cannot see into."""

    def forward(self, x):
        return torch.cdist(x, x) + Opaque.apply(x) + Opaque.apply(x)


@pytest.mark.parametrize("method", ["lora", "padapter"])
def test_products_that_are_missed_are_named_apart_and_tied_ones_are_not_missed(method):
    model = inject(nn.Sequential(nn.Linear(IN, OUT), Hidden()), CapaBoostConfig(method, r=R), _plan("0"))
    counts = count_flops(model, torch.ones(TOKENS))
    assert counts.unsupported == {"aten::cdist": 1, "prim::PythonOp.Opaque": 2}
    assert counts.executed_by_operator.keys() == {"linear", "tied"}


class Net(nn.Module):
    """Three linear layers, products of 16 * 24, 24 * 24 and 24 * 5 for each row."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(IN, OUT), nn.Linear(OUT, OUT), nn.Linear(OUT, 5)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


FIRST, SECOND, HEAD = ROWS * IN * OUT, ROWS * OUT * OUT, ROWS * OUT * 5
BASE = FIRST + SECOND + HEAD
SECOND_A, SECOND_B = ROWS * R * OUT, ROWS * R * OUT
STEPS = {
    "full": ("full", FIRST + 2 * SECOND + 2 * HEAD, 0),  # the data needs no gradient
    "linear": ("linear", HEAD, 0),  # nothing flows below the head
    "lora": ("lora", 2 * HEAD, SECOND_A + 2 * SECOND_B),  # the first trainable layer's input needs no gradient
    "padapter": ("padapter", 2 * HEAD, SECOND_A + 2 * SECOND_B),
}


@pytest.mark.parametrize(("method", "backward", "tied_backward"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("num_tied", "density"), [(1, 1.0), (2, 0.5), (4, 0.25), (2, 1.0)])
def test_training_step_by_hand(method, backward, tied_backward, num_tied, density):
    trains_modules = method not in ("linear", "full")
    config = CapaBoostConfig(method, **(dict(r=R, num_tied=num_tied, density=density) if trains_modules else {}))
    model = inject(Net(), config, Plan((Target("second"),), head=("head",)))
    counts = count_flops(model, torch.ones(TOKENS), backward=True)
    assert dispatched_products(model, torch.ones(TOKENS)) == (
        counts.executed,
        BASE + counts.executed_by_operator.get("tied", 0),
    )
    forward = {"linear": BASE, "backward": backward}
    tied = {"tied": SECOND_A + SECOND_B, "tied_backward": tied_backward} if tied_backward else {}
    assert counts.executed_by_operator == forward | {name: num_tied * count for name, count in tied.items()}
    assert counts.effective_by_operator == forward | {name: num_tied * density * count for name, count in tied.items()}


CONVOLUTIONS = {
    "strided": BASES["conv"],
    "in groups": BASES["groups"],
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 2, stride=2), [(2, 4, 5)], (2 * 4 * 5) * (6 * 2)),
}


@pytest.mark.parametrize(("create", "shapes", "expected"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_has_its_products_again_for_each_gradient(create, shapes, expected):
    (shape,) = shapes
    assert count_flops(create(), torch.ones(shape), backward=True).executed == 2 * expected
    scaled = nn.Sequential(nn.LayerNorm(shape[-1]), create())
    assert count_flops(scaled, torch.ones(shape), backward=True).executed == 3 * expected


def test_gradients_flow_through_frozen_layers_without_their_weights_gradients():
    model = inject(Net(), CapaBoostConfig(r=R, num_tied=1, density=1), Plan((Target("first"), Target("second"))))
    counts = count_flops(model, torch.ones(TOKENS), backward=True).executed_by_operator
    assert counts["backward"] == SECOND + HEAD
    assert counts["tied_backward"] == ROWS * R * (IN + 2 * OUT) + 2 * (SECOND_A + SECOND_B)


FUSED = ((0, 8), (16, 24))
MASKS = {
    "d1": {"num_tied": 1, "density": 1.0},
    "d2": {"num_tied": 2, "density": 0.5},
    "d4": {"num_tied": 4, "density": 0.3},
    "same": {"mask": "same", "density": 0.3},
    "2:4": {"mask": "nm", "n": 2, "m": 4},
}


@pytest.mark.parametrize("settings", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("method", ["lora", "padapter", "hadapter"])
def test_effective_counts_the_ones_of_the_masks(method, settings):
    slices = FUSED if method == "lora" else None
    model = inject(nn.Sequential(nn.Linear(IN, OUT)), CapaBoostConfig(method, r=R, **settings), _plan("0", slices))
    bits = [tied.bits for layer in adapted_layers(model) for tied in layer.tied_weights().values()]
    ones = sum(int((b >> copy & 1).sum()) for b in bits for copy in range(8))
    dense = {"lora": 2 * R * (IN + 8), "padapter": 2 * R * OUT, "hadapter": 2 * R * OUT}[method]
    counts = count_flops(model, torch.ones(TOKENS))
    assert counts.effective_by_operator == {"linear": ROWS * IN * OUT, "tied": ROWS * ones}
    assert counts.executed_by_operator["tied"] == ROWS * dense * settings.get("num_tied", 2)


def _plan(path, slices=None):
    return Plan((Target(path, slices),))


def test_redrawn_masks_keep_their_share_in_training_and_all_in_evaluation():
    config = CapaBoostConfig(r=R, mask="dropout", density=0.25)
    model = inject(nn.Sequential(nn.Linear(IN, OUT)), config, _plan("0"))
    dense = 2 * ROWS * R * (IN + OUT)
    for training, share in ((True, 0.25), (False, 1)):
        counts = count_flops(model.train(training), torch.ones(TOKENS))
        assert counts.executed_by_operator["tied"] == dense
        assert counts.effective_by_operator["tied"] == share * dense


def test_masked_copies_cost_what_plain_lora_does():
    plain, tied = (
        count_flops(inject(Net(), CapaBoostConfig(r=R, **settings), _plan("second")), torch.ones(TOKENS), True)
        for settings in ({"num_tied": 1, "density": 1}, {"num_tied": 2, "density": 0.5})
    )
    assert tied.effective == plain.effective == plain.executed
    for name in ("tied", "tied_backward"):
        assert tied.executed_by_operator[name] == 2 * plain.executed_by_operator[name]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(IN, IN), nn.LayerNorm(IN)

    def forward(self, x):
        return self.norm(x + self.inner(x))


ADAPTED = [
    ("lora", "0.inner", "1.inner"),
    ("padapter", "0.norm", "1.norm"),
    ("hadapter", "0.inner", "1.norm"),
]


@pytest.mark.parametrize(("method", "low", "high"), ADAPTED, ids=lambda value: value)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_executed_is_what_torch_sees(method, low, high, device):
    with torch.device(device):
        model, x = nn.Sequential(Residual(), Residual(), nn.Linear(IN, 3)), torch.ones(TOKENS)
        inject(model, CapaBoostConfig(method, r=R), Plan((Target(low), Target(high)), head=("2",)))
    counts = count_flops(model, x, backward=True)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm}) as forward:
        out = model(x)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm}) as backward:
        out.sum().backward()
    assert 2 * count_flops(model, x).executed == forward.get_total_flops()
    assert 2 * counts.executed == forward.get_total_flops() + backward.get_total_flops()


def _addmm(shape, a, b, *args, **settings):
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.parametrize("method", ["lora", "padapter"])
def test_what_is_added_is_the_difference_from_the_base(method):
    model = inject(
        nn.Sequential(Residual(), nn.Linear(IN, 3)), CapaBoostConfig(method, r=R, num_tied=3), _plan("0.inner")
    )
    with disable(model):
        base = count_flops(model, torch.ones(TOKENS)).effective
    assert count_added(model, torch.ones(TOKENS)) == count_flops(model, torch.ones(TOKENS)).effective - base > 0


def test_disabled_and_merged_models_cost_what_their_base_does():
    model = inject(Net(), CapaBoostConfig(r=R), Plan((Target("second"),), head=("head",)))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    base = {"linear": BASE, "backward": HEAD}
    with disable(model):
        assert count_flops(model, torch.ones(TOKENS), backward=True).executed_by_operator == base
    assert count_flops(model, torch.ones(TOKENS)).executed > BASE  # and the addition is back
    assert count_flops(merge(model).eval(), torch.ones(TOKENS), backward=True).effective_by_operator == base
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())


def hooks_of(model):
    return [(list(module._forward_pre_hooks), list(module._forward_hooks)) for module in model.modules()]


def test_leaves_random_numbers_hooks_and_gradients_as_they_are():
    model = inject(nn.Sequential(nn.Linear(IN, OUT), nn.Dropout(0.5)), CapaBoostConfig(r=R, dropout=0.5), _plan("0"))
    torch.manual_seed(0)
    expected = model.train()(torch.ones(TOKENS))
    before = hooks_of(model)
    torch.manual_seed(0)
    count_flops(model, torch.ones(TOKENS), backward=True)
    assert torch.equal(model(torch.ones(TOKENS)), expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks_of(model) == before


def test_refuses_what_it_cannot_count():
    frozen = nn.Linear(IN, OUT).requires_grad_(False)
    with pytest.raises(UserError, match="inject a method first"):
        count_flops(frozen, torch.ones(TOKENS), backward=True)
    with pytest.raises(UserError, match="inputs has a str"):
        count_flops(frozen, {"input": "x"})
    assert count_flops(frozen, {"input": torch.ones(TOKENS)}).executed == FIRST


def test_fvcore_is_imported_without_a_warning():
    imported = [sys.executable, "-c", "import capaboost.report.flops"]
    assert subprocess.run(imported, capture_output=True, text=True).stderr == ""
