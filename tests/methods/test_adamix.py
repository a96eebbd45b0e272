"""AdaMix's random routing, its mean expert, and its consistency loss."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from benchmarks.fake_cuda import fake_cuda
from capaboost_core import merge, trainable_parameters
from capaboost_core.injection import adapted_layers, weight_decay_groups
from capaboost_core.methods.adamix import ExpertWeight, disagreement
from tests.compatibility.models import drawn, logits
from tests.fake_cuda import OnDevice
from tests.methods.cases import adapted, settings, trained
from tests.methods.mixtures import ROWS, WIDTH, adapter_of, biases, matrices, seen

H = drawn("h", (ROWS, WIDTH), 1.0).double()
EXPERTS = 3


def reference(adapter, down, up):
    """U f(D h + c) + e of a pair of experts, or of mean weights."""

    def chosen(stack, expert):
        return stack.mean(0) if expert == "mean" else stack[expert]

    weights = [chosen(matrices(adapter, name), e) for name, e in (("down", down), ("up", up))]
    offsets = [chosen(biases(adapter, name), e) for name, e in (("down", down), ("up", up))]
    return F.gelu(H @ weights[0].T + offsets[0]) @ weights[1] + offsets[1]


@pytest.mark.parametrize("share_up", [True, False])
def test_training_draws_experts_and_evaluation_has_one_of_mean_weights(share_up):
    adapter = adapter_of("adamix", r=4, num_experts=EXPERTS, share_up=share_up)
    pairs = list(product(range(EXPERTS), range(1 if share_up else EXPERTS)))
    assert seen(lambda: adapter(H), {pair: reference(adapter, *pair) for pair in pairs}) == {*pairs}
    adapter.eval()
    torch.testing.assert_close(adapter(H), reference(adapter, "mean", "mean"))


def test_a_step_trains_the_expert_that_it_drew():
    adapter = adapter_of("adamix", r=4, num_experts=EXPERTS)
    adapter(H).square().sum().backward()
    touched = adapter.down.packed.grad.view(EXPERTS, -1).any(1)
    assert touched.sum() == 1
    assert touched.equal(adapter.down_bias.grad.view(EXPERTS, -1).any(1))
    assert adapter.up.packed.grad.all()


def test_layers_draw_for_themselves_and_follow_the_stream_of_the_run():
    first, second = (layer.adapter for layer in adapted_layers(adapted("adamix", "bert")))
    drawn_by_both = set()
    for seed in range(20):
        chosen = []
        for adapter in (first, second):
            if adapter is first:
                torch.manual_seed(seed)
            adapter.train().zero_grad()
            adapter(torch.ones(1, 16)).sum().backward()
            chosen.append(int(adapter.down_bias.grad.view(4, -1).abs().sum(1).argmax()))
        drawn_by_both.add(tuple(chosen))
        torch.manual_seed(seed)
        assert int(torch.randint(4, (1,))) == chosen[0]
    assert len(drawn_by_both) > 4


def test_experts_start_apart_and_their_biases_do_not_decay():
    down = adapted_layers(adapted("adamix", "vit"))[0].adapter.down.packed.detach().view(4, -1)
    assert all(not torch.equal(a, b) for i, a in enumerate(down) for b in down[:i])
    assert down.std() == pytest.approx(0.02, rel=0.3)
    parameters = trainable_parameters(adapted("adamix", "vit"))
    decayed = {id(p) for p in weight_decay_groups(parameters.values(), 0.1)[0]["params"]}
    for name, parameter in parameters.items():
        assert (id(parameter) in decayed) == (not name.endswith("bias")), name


@pytest.mark.parametrize(
    "preset",
    ["adamix", "capaboost-adamix", "capaboost-adamix-lora", "capaboost-madakron", "capaboost-madakron-partial"],
)
@pytest.mark.parametrize("training", [False, True])
def test_effective_products_are_the_nonzeros_of_what_is_computed_with(preset, training):
    """The mean of experts holds what the mask of any of them keeps."""
    model = adapted(preset, "vit").train(training)
    weights = [module for module in model.modules() if isinstance(module, ExpertWeight)]
    assert weights
    for weight in weights:
        torch.nn.init.ones_(weight.packed)
        nonzeros = [int((stack != 0).sum()) for stack in weight.copies()]
        mean = int((weight.copies().mean(0) != 0).sum())
        assert weight.kept == (sum(nonzeros) // len(nonzeros) if training else mean)
        assert weight.executed == weight.copies()[0].numel()


def test_lora_draws_its_a_and_merges_the_mean():
    model = trained("adamix-lora", "bert")
    layer, x = adapted_layers(model)[0], drawn("x", (2, 16), 1.0)
    factors = layer.lora_A.packed.view(4, 4, 16), layer.lora_B.packed.view(4, 16)
    plain = F.linear(x, layer.weight, layer.bias)

    def expected(a):
        return plain + layer.scaling * x @ a.T @ factors[1]

    choices = {expert: expected(a) for expert, a in enumerate(factors[0])}
    layer.train()
    assert seen(lambda: layer(x), choices, 1e-5) == {*choices}
    merge(model.eval())
    torch.testing.assert_close(layer(x), expected(factors[0].mean(0)), atol=1e-5, rtol=1e-5)


def kl(p, q):
    return (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
def test_disagreement_is_the_symmetric_divergence(shape):
    a, b = (drawn(name, shape, 1.0).double().requires_grad_() for name in "ab")
    p, q = (x.flatten(0, -2).softmax(-1) for x in (a, b))
    found = disagreement(a, b)
    torch.testing.assert_close(found, ((kl(p, q) + kl(q, p)) / 2).float(), atol=1e-6, rtol=1e-5)
    gradients = torch.autograd.grad(found, (a, b))
    expected = torch.autograd.grad((kl(q.detach(), p) + kl(p.detach(), q)) / 2, (a, b))
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-4)
    assert disagreement(a, a) == 0


def test_disagreement_of_named_logits_is_summed():
    a, b = (drawn(name, (4, 3), 1.0) for name in "ab")
    pair = {"start_logits": a, "end_logits": b, "hidden_states": None}, {"start_logits": b, "end_logits": a}
    torch.testing.assert_close(disagreement(*pair), 2 * disagreement(a, b))


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_the_objective_is_the_loss_and_the_disagreement_of_a_second_pass(kind):
    model, seen_logits, batch = trained("adamix", kind).train(), [], torch.tensor([0, 1])

    def loss_of(model, batch):
        seen_logits.append(logits(model))
        return F.cross_entropy(seen_logits[-1], batch)

    config, hooks = settings("adamix", consistency=0.7), dict(model._forward_hooks)
    torch.manual_seed(0)
    found = config.objective(loss_of, model, batch)
    first, second = seen_logits
    assert not torch.equal(first, second)
    torch.testing.assert_close(found, F.cross_entropy(first, batch) + 0.7 * disagreement(first, second))
    assert model._forward_hooks.keys() <= hooks.keys()  # it leaves none of its own
    settings("adamix", consistency=0.0).objective(loss_of, model, batch)
    assert len(seen_logits) == 3


def test_the_objective_does_not_wait_for_the_gpu():
    model = adapted("adamix", "vit").train()
    with fake_cuda():
        model, x = model.to("cuda"), torch.zeros(2, 3, 32, 32, device="cuda")
        with OnDevice():
            loss = settings("adamix").objective(lambda model, x: model(x).square().mean(), model, x)
    assert loss.device.type == "cuda"
